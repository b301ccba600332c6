"""The command `compress VERB ...`: a table of verbs, each the command of one module.

`python -m MODULE` of that module is the same. Nothing heavy is imported before a verb needs it.
"""

from compress.cli.main import main

__all__ = ["main"]
