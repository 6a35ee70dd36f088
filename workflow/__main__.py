"""``python -m workflow``: see :mod:`workflow.run`."""

import sys

from workflow.run import main

if __name__ == "__main__":
    sys.exit(main())
