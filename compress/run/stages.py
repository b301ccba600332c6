"""The stages that a run may have: a table of names, whose modules are imported when needed.

Nothing in `compress.run` names a stage's module; the commands above it give their table.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StageTable:
    """Name of a stage -> path of its module, so that a missing optional part breaks no other stage.

    A module has `RESULT_VERSION`, `IN_EVERY_PROCESS` (False: the main process runs it alone),
    `run(job) -> Outcome` and `files(folder, values)`, which names the files that a result vouches
    for (see `skipping`). One whose jobs can learn in lockstep also has `learn(job)`, the same as a
    generator that stops before each training step. One that knows more of its recipe section than
    the schema does has `check(section, path)`, which gives its problems, and `schema()`.
    """

    modules: Mapping[str, str]

    def load(self, stage: str) -> Any:
        """Import a stage's module."""
        return importlib.import_module(self.modules[stage])

    def version(self, stage: str) -> int:
        """A stage's RESULT_VERSION; imports the stage."""
        number: int = self.load(stage).RESULT_VERSION
        return number
