"""The RL step: read step.py first, then pieces.py; types.py and registry.py hold the contract."""
