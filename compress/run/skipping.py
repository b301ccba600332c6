"""Whether a stage that is done can be skipped: its result fits, and all it vouches for is whole.

What is damaged is named, put aside, and made again: a student from its checkpoint, a bundle from
the student. A result written before files were recorded is taken as it is, once, unless it holds a
digest that does not fit.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from compress.console.messages import log
from compress.engine.checkpoint import rewrite_metrics
from compress.errors import UserError
from compress.run.directory import RunDirectory
from compress.storage.files import write_json
from compress.storage.integrity import find_damaged, put_aside
from compress.storage.results import read_result

# Of a stage's folder and its result's `values`: the files it vouches for, and known digests.
Files = Callable[[Path, Mapping[str, Any]], Mapping[str, str | None]]

RESULT = "result.json"


def can_skip(
    run: RunDirectory,
    stage: str,
    fields: Mapping[str, Any],
    files: Files,
    folder_fields: Mapping[str, Any] | None = None,
) -> bool:
    """Decide whether to skip a stage; damaged files of a finished one are put aside.

    To be called by the process that holds the run directory.

    Args:
        fields: what the result depends on.
        files: see `Files`.
        folder_fields: what the folder stands for, where that is less than `fields`.
    """
    folder = run.stage_folder(stage)
    try:
        if not run.is_finished(stage, fields):
            return False
    except UserError as error:
        # Which files were whole is not known any more.
        _put_aside(stage, folder, [*files(folder, {}), RESULT], str(error))
        return False
    problems = _with_histories_mended(run, stage, damage(run, stage, files))
    if not problems:
        _record(run, stage, files)
        return True
    if "fields.json" in problems:
        put_aside(folder, ["fields.json"])
        write_json(folder / "fields.json", fields if folder_fields is None else folder_fields)
    # A training of several is done again as a whole.
    outcomes = [(folder / name).with_name("outcome.json") for name in problems]
    beside = [path.relative_to(folder).as_posix() for path in outcomes]
    names = dict.fromkeys([*problems, *beside, RESULT])
    _put_aside(stage, folder, [*names], _sentence(folder, problems))
    return False


def require_undamaged(run: RunDirectory, stage: str, files: Files) -> None:
    """Check what a finished stage vouches for; nothing is changed.

    Raises:
        UserError: a file is damaged.
    """
    problems = damage(run, stage, files)
    if problems:
        raise UserError(f"{_sentence(run.stage_folder(stage), problems)}; run the recipe again")


def damage(run: RunDirectory, stage: str, files: Files) -> dict[str, str]:
    """Name -> what is wrong with it, of the files that a finished stage vouches for."""
    folder, result = run.stage_folder(stage), read_result(run.folder, stage)
    if "files" in result:
        return find_damaged(folder, result["files"])
    known = files(folder, result["values"])
    return find_damaged(folder, {name: {"sha256": digest} for name, digest in known.items()})


def _with_histories_mended(
    run: RunDirectory, stage: str, problems: Mapping[str, str]
) -> dict[str, str]:
    """The problems that are left once each `metrics.jsonl` is written again from its checkpoint.

    Where there is no checkpoint any more the rows are gone, which is no reason to train anew.
    """
    folder = run.stage_folder(stage)
    left = dict(problems)
    for name in [name for name in problems if Path(name).name == "metrics.jsonl"]:
        result = read_result(run.folder, stage)
        records = {**result["files"]}
        put_aside(folder, [name])
        entry = {name: records.pop(name)}
        whole = rewrite_metrics((folder / name).parent) and not find_damaged(folder, entry)
        if not whole:
            put_aside(folder, [name])
            run.write_result(stage, {**result, "files": records})
        then = "written again from its checkpoint" if whole else "its epochs are no longer known"
        log(f"{stage}: {name} {left.pop(name)}; {then}")
    return left


def _record(run: RunDirectory, stage: str, files: Files) -> None:
    """Record the files of a result that was written before there were records."""
    result = read_result(run.folder, stage)
    if "files" not in result:
        names = files(run.stage_folder(stage), result["values"])
        run.write_result(stage, {**result, "files": run.records(stage, names)})


def _put_aside(stage: str, folder: Path, names: list[str], problem: str) -> None:
    place = put_aside(folder, names)
    log(f"{stage}: {problem}; it is now in {place}, and made again from what is whole")


def _sentence(folder: Path, problems: Mapping[str, str]) -> str:
    return ", ".join(f"{folder / name} {problem}" for name, problem in problems.items())
