"""`python -m export.detectron2`: see `export.detectron2.command`."""

import sys

from export.detectron2.command import main

if __name__ == "__main__":
    sys.exit(main())
