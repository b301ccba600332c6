"""`python -m compress.sweep`: see `compress.sweep.command`."""

import sys

from compress.sweep.command import main

if __name__ == "__main__":
    sys.exit(main())
