"""`python -m flows.search --budget 30`: look for the best order within a budget of trained phases."""

import sys

from trainorder.flow.search import main

if __name__ == "__main__":
    sys.exit(main())
