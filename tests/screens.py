"""What a user sees of a finished run: the report, MLflow's and Prefect's pages, opened in a browser and photographed.

`walk` is a test of tests/pipeline/test_pipeline.py over the small project that is trained there. With SCREENSHOTS=FOLDER it keeps
the pictures, with SCREENSHOTS_OF=FOLDER it looks at the project in that folder: `make screenshots` takes those of the docs.
"""

from __future__ import annotations

import json
import re
import sys
import urllib.request
from contextlib import AbstractContextManager
from typing import Any

from browser import Tab, browsing
from conftest import Project
from serving import started

SIZE = {"width": 1400, "height": 900}
KNOWN_USER = """
if (location.protocol.startsWith("http")) {
  localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
  localStorage.setItem("mlflow.workflowType_v1", '"machine_learning"');
}
"""
"""Script that makes MLflow's pages those of a user who closed its assistant and chose model training once."""


def walk(project: Project) -> list[str]:
    """Open all pages of a finished run; what their consoles said is returned."""
    bwt = json.loads((project.root / "reports" / "bwt.json").read_text(encoding="utf-8"))
    with browsing(viewport=SIZE, color_scheme="light") as tab:
        tab.page.add_init_script(KNOWN_USER)
        report(tab, project, bwt)
        with served(project, "ui", "--prefect-port", "0", "--mlflow-port", "0") as said:
            links = dict(re.findall(r"^(.+?)  +(http\S+)$", said, re.MULTILINE))
            orders(tab, bwt, links)
            node(tab, project, bwt, links)
            flow_run(tab, links["Prefect: runs of the flow"])
            tab.page.goto("about:blank")  # before its server ends
        with served(project, "deploy", "--port", "0") as said:
            (form,) = re.findall(r"(http\S+/deployments/deployment/\S+)", said)
            run_form(tab, form, bwt)
            tab.page.goto("about:blank")
        return tab.errors


def served(project: Project, *command: str) -> AbstractContextManager[str]:
    """What a command that serves the project has printed by then."""
    return started([sys.executable, "-m", "trainorder.cli", *command], project.root, project.env)


def report(tab: Tab, project: Project, bwt: dict[str, Any]) -> None:
    """The first screen answers which order, how sure, and at what cost."""
    tab.open((project.root / "reports" / "report.html").as_uri())
    for name in ("Which order?", "What did each step cost the others?", "How sure?"):
        tab.page.get_by_role("heading", name=name).wait_for()
    for order in bwt["orders"]:
        assert tab.page.get_by_text(order).count() > 0, order
    tab.shot("report", height=1250)


def orders(tab: Tab, bwt: dict[str, Any], links: dict[str, str]) -> None:
    """MLflow's table of orders, and two of them on its compare page."""
    first, second = [name for name in bwt["orders"] if len(bwt["orders"][name]["phases"]) > 1][:2]
    tab.open(links["MLflow: orders, table"])
    tab.shows(first, second, "pos1", f"score/{bwt['tasks'][0]}")
    tab.shot("mlflow-orders")
    tab.open(links["MLflow: orders compared"])
    tab.shows(first, second, "pos2")
    tab.page.locator(".js-plotly-plot").first.wait_for()
    tab.shot("mlflow-compare")


def node(tab: Tab, project: Project, bwt: dict[str, Any], links: dict[str, str]) -> None:
    """The run of the last checkpoint of an order: curves by task, parent, data, model, rollouts."""
    order = next(o for o in bwt["orders"].values() if len(o["phases"]) > 1)
    name = next(iter(order["nodes"].values()))[-1]
    task = order["positions"][-1][0]
    tab.open(links["MLflow: nodes, table"])
    tab.page.get_by_text(name, exact=True).first.click()
    tab.shows(name, "Parent run", f"task/{task}/reward")
    tab.page.get_by_text(f"{task}/train").first.wait_for()
    tab.shot("mlflow-node", rows=(0, 545))
    tab.page.get_by_role("tab", name="Model metrics").click()
    tab.page.get_by_placeholder("Search metric charts").fill("task/")
    tab.page.get_by_text(f"task/{task}").first.wait_for()
    tab.page.locator(".js-plotly-plot").first.wait_for()
    tab.shot("mlflow-curves")
    rollouts = json.loads((project.root / "runs" / name / "manifest.json").read_text())["rollouts"]
    tab.page.get_by_role("tab", name="Traces").click()
    tab.shows("Request", "Response", f"{len(rollouts)} of {len(rollouts)}")
    tab.shot("mlflow-traces")


def flow_run(tab: Tab, address: str) -> None:
    """The latest run of the flow: its graph, its tasks."""
    url = address.removesuffix("/runs")
    body = {"sort": "START_TIME_DESC", "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}}}
    request = urllib.request.Request(
        f"{url}/api/flow_runs/filter",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        run = next(run for run in json.load(answer) if run["parent_task_run_id"] is None)
    tab.open(f"{url}/runs/flow-run/{run['id']}")
    tab.shows(run["name"], "Completed", "Task Runs", "Artifacts")
    tab.shot("prefect-run", rows=(143, 900))


def run_form(tab: Tab, form: str, bwt: dict[str, Any]) -> None:
    """The deployment's form has the orders of params.yaml to edit."""
    tab.open(f"{form}/run")
    tab.shows("orders (Optional)", "workers (Optional)")
    first = next(name for name in bwt["orders"])
    tab.page.get_by_text(f'"{first}"').first.wait_for()
    tab.shot("prefect-form")
