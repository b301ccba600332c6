"""`python -m eval.segmentation RUN_OR_BUNDLE --data DIR`, or `--describe NAME`.

See `eval.transfer.command`.
"""

import sys

from eval.segmentation import describe
from eval.transfer.command import main

describes = any(argument.split("=")[0] == "--describe" for argument in sys.argv[1:])
sys.exit(describe.main(sys.argv[1:]) if describes else main("segmentation"))
