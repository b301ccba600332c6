"""`python -m export.verify`: see `export.verify.command`."""

import sys

from export.verify.command import main

if __name__ == "__main__":
    sys.exit(main())
