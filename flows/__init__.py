"""Prefect flows: names and order. DVC decides what runs, Prefect shows it."""
