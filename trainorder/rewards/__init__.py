"""Graders: the answer format, what verifiers share, the sandbox for model-written code."""
