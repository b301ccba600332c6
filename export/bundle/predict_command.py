"""`compress predict BUNDLE PHOTO...`: this package's predict.py over the data of any bundle.

The predict.py that lies in a bundle may be somebody else's code and is not run; it is compared with
the manifest, as every file of the bundle is.
"""

import argparse
import sys

from export.bundle import predict

_PROG = "compress predict"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code, see `export.bundle.predict`."""
    return predict.main(arguments, _PROG)


def parser() -> argparse.ArgumentParser:
    """The parser of the command's arguments."""
    return predict.parser(_PROG)


if __name__ == "__main__":
    sys.exit(main())
