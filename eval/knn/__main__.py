"""`python -m eval.knn RUN_OR_BUNDLE --data DIR`: see `eval.transfer.command`."""

import sys

from eval.transfer.command import main

sys.exit(main("knn"))
