"""What a node logs: runs/<node>/metrics.jsonl is the truth, MLflow shows a copy.

Every run carries tags that say whose it is (trainorder/owner.py), and nobody else's run is changed.

The only package that knows MLflow. A store that is down, slow or broken costs one warning, never a number and never a
training step. MLflow takes seconds to import, so it is imported when the first run opens.
"""

from trainorder.tracking.nodes import NodeRecord, fill, log_nodes, read_node, register, sweep
from trainorder.tracking.orders import ARM, OrderRecord, log_orders
from trainorder.tracking.store import connect, create_store
from trainorder.tracking.tracker import Tracker, read_run_id

__all__ = [
    "ARM",
    "NodeRecord",
    "OrderRecord",
    "Tracker",
    "connect",
    "create_store",
    "fill",
    "log_nodes",
    "log_orders",
    "read_node",
    "read_run_id",
    "register",
    "sweep",
]
