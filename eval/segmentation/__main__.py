"""`python -m eval.segmentation RUN_OR_BUNDLE --data DIR`: see `eval.command`; `--describe NAME`."""

import sys

from eval.command import main
from eval.segmentation import describe

asked = any(argument.split("=")[0] == "--describe" for argument in sys.argv[1:])
sys.exit(describe.main(sys.argv[1:]) if asked else main("segmentation"))
