"""The command `trainorder`. What is heavy is imported inside the commands, so that a typo is reported at once."""

from trainorder.cli import running, answers, probing, keeping  # isort: skip  # the order of the help
from trainorder.cli.app import app

__all__ = ["answers", "app", "keeping", "probing", "running"]
