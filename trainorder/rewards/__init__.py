"""Graders: the answer format, the sandbox for model-written code, the judge."""
