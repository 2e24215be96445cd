"""Measurements that are too slow or too machine-dependent for the tests; each module is a command."""
