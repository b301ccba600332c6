"""`python -m eval.linear_probe RUN_OR_BUNDLE --data DIR`: see `eval.command`."""

import sys

from eval.command import main

sys.exit(main("linear_probe"))
