"""`python -m trainorder.cli`."""

from trainorder.cli import app

if __name__ == "__main__":
    app()
