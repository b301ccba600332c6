"""Results of finished stages, as they lie in a run directory."""

from pathlib import Path
from typing import Any

from compress.errors import UserError
from compress.storage.files import read_mapping
from compress.storage.integrity import UNSEALED_RESULT, require_seal
from compress.storage.integrity import sha256_file as sha256_file


def read_result(run_folder: Path, stage: str) -> dict[str, Any]:
    """A finished stage's `result.json`.

    Raises:
        UserError: there is none, or its content is not what was written.
    """
    path = run_folder / stage / "result.json"
    if not path.is_file():
        raise UserError(f"{run_folder} has no finished stage '{stage}'; run the recipe first")
    result = read_mapping(path)
    if not {"fingerprint", "values", "measured"} <= set(result):
        raise UserError(f"{path} is damaged; redo the stage with --fresh {stage}")
    require_seal(result, path, UNSEALED_RESULT)
    return result
