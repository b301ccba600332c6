"""`compress predict BUNDLE PHOTO...`: this package's predict.py over the data of any bundle.

The predict.py that lies in a bundle may be somebody else's code and is not run; it is compared with
the manifest, as every file of the bundle is.
"""

import sys

from export.bundle import predict


def main(arguments: list[str] | None = None, prog: str = "compress predict") -> int:
    """Run the command; returns the exit code, see `export.bundle.predict`."""
    return predict.main(arguments, prog)


if __name__ == "__main__":
    sys.exit(main())
