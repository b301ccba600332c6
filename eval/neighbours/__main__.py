"""`python -m eval.neighbours`, the former name of `python -m eval.knn`."""

import sys

from eval.transfer.command import main

sys.exit(main("neighbours"))
