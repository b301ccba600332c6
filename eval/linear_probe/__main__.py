"""`python -m eval.linear_probe RUN_OR_BUNDLE --data DIR`: see `eval.transfer.command`."""

import sys

from eval.transfer.command import main

sys.exit(main("linear_probe"))
