"""The RL step: read step.py first, then pieces/; types.py and registry.py hold the contract."""
