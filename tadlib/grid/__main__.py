"""``python -m tadlib.grid``: see :mod:`tadlib.grid.run`."""

import sys

from tadlib.grid.run import main

if __name__ == "__main__":
    sys.exit(main())
