"""`python -m flows.pipeline`, the same as `trainorder run`."""

import sys

from trainorder.flow.run import main

if __name__ == "__main__":
    sys.exit(main())
