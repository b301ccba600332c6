"""`python -m eval.neighbours`, the former name of `python -m eval.knn`."""

import sys

from eval.transfer.command import main

if __name__ == "__main__":
    sys.exit(main("neighbours"))
