"""The pieces that params.yaml can name under `method:`, one module per family (slots and signatures: rl/registry.py).

A module in this folder is found by being there. A piece is a function below its registration line; the fingerprint of a
phase covers the pieces that the phase names and what they call, so that a new one changes no phase that does not name it.
What several families need stands in rl/helpers.py, which every phase runs; what one family needs, in its module.
"""

from importlib import import_module
from pkgutil import iter_modules

for _family in iter_modules(__path__, f"{__name__}."):
    import_module(_family.name)
