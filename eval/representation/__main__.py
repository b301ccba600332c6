"""`python -m eval.representation RUN`: see `eval.representation.command`."""

import sys

from eval.representation.command import main

sys.exit(main())
