"""Results of finished stages, as they lie in a run directory."""

from pathlib import Path
from typing import Any

from compress.errors import UserError
from compress.storage.files import read_mapping
from compress.storage.integrity import UNSEALED_RESULT, find_damaged, require_seal

_AGAIN = "run the recipe again, which makes it anew from what is whole"


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


def find_run(place: Path) -> Path | None:
    """The run directory that is `place` or holds it, at most three folders above."""
    places = [place, *place.absolute().parents][:4]
    return next((folder for folder in places if (folder / "resolved.yaml").is_file()), None)


def require_whole(folder: Path, name: str) -> None:
    """Check a model file and its description against the result of the stage that wrote them.

    A `result.json` outside a run directory is somebody else's and says nothing.

    Raises:
        UserError: the file, its description or the result is damaged.
    """
    stage = next((p for p in (folder, folder.parent) if (p / "result.json").is_file()), None)
    if stage is None or find_run(folder) is None:
        return
    try:
        records = read_result(stage.parent, stage.name).get("files", {})
    except UserError:
        raise UserError(f"{stage / 'result.json'} is damaged; {_AGAIN}") from None
    files = ((folder / f"{name}{s}").relative_to(stage) for s in (".safetensors", ".json"))
    names = [file.as_posix() for file in files]
    problems = find_damaged(stage, {name: records[name] for name in names if name in records})
    for damaged_name, problem in problems.items():
        raise UserError(f"{stage / damaged_name} {problem}; {_AGAIN}, or restore it")
