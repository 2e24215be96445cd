"""Ways to use a checkpoint in an evaluation, which `evaluation.ways` of params.yaml names (evaluation/sitting.py).

A module in this folder is found by being there. The fingerprint of evaluations covers the ways that params.yaml names.
"""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__, f"{__name__}."):
    import_module(_module.name)
