"""Results of finished stages, as they lie in a run directory."""

from pathlib import Path
from typing import Any

from compress.errors import UserError
from compress.storage.files import read_mapping


def read_result(run_folder: Path, stage: str) -> dict[str, Any]:
    """A finished stage's `result.json`."""
    path = run_folder / stage / "result.json"
    if not path.is_file():
        raise UserError(f"{run_folder} has no finished stage '{stage}'; run the recipe first")
    result = read_mapping(path)
    if not {"fingerprint", "values", "measured"} <= set(result):
        raise UserError(f"{path} is damaged; redo the stage with --fresh {stage}")
    return result
