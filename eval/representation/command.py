"""The command: `compress eval representation RUN [--student LABEL ...] [--data FOLDER]`.

Compares the students of a run with its teacher on the test images of its recipe, or of another data
set, writes `RUN/representation/` and the run's report again. `compress eval representation
TEACHER STUDENT [...] --data FOLDER` does the same for networks of any origin; its folder holds a
report of its own.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from compress.console.ending import exit_code
from compress.console.messages import console, log
from compress.console.terminal import print_error, print_stop
from compress.data import Dataset
from compress.environment import environment
from compress.errors import UserError, nearest
from compress.model_files import Origin, open_origin, origins_of
from compress.models import user_code
from compress.recipe.files import load_resolved
from compress.reporting import write_report
from compress.reporting.representation import (
    FOLDER,
    summary_table,
    write_representation_report,
)
from compress.run.launch import usable_device
from compress.stages import dataset_of
from compress.storage.files import write_bytes, write_json
from compress.storage.fingerprints import sha256_file
from compress.storage.integrity import record, seal
from compress.storage.results import find_run
from eval.data.labelled import DATASETS
from eval.representation.measure import PARTS, Comparison, Part, Settings, measure
from eval.representation.networks import ComparedNetwork
from eval.transfer.options import recognise_dataset


@dataclass(frozen=True)
class Request:
    """A command that has been checked: origins by label, the first of which is the teacher.

    `run` is the run directory whose students are compared, None for networks of other origins.
    """

    origins: Mapping[str, Origin]
    data: Dataset
    data_name: str
    settings: Settings
    parts: Sequence[str]
    folder: Path
    run: Path | None


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit code: 0, 2 after a user's mistake, 130 or 143 stopped."""
    options = parser().parse_args(arguments)
    return exit_code(lambda: _command(options), print_error, print_stop)


def parser() -> argparse.ArgumentParser:
    """The parser of the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="compress eval representation", description=(__doc__ or "").partition("\n")[0]
    )
    add = parser.add_argument
    add("origins", nargs="+", metavar="RUN_OR_ORIGIN", help="a run, or a teacher and students")
    add("--student", nargs="+", metavar="LABEL", help="of the run (default: all but other trials)")
    add("--teacher", default="teacher", metavar="LABEL", help="of the run (default: teacher)")
    add("--data", type=Path, help="folder of a data set (default: that of the run's recipe)")
    add("--dataset", choices=DATASETS, help="its layout (default: recognised)")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    add("--out", type=Path, help=f"default: RUN/{FOLDER}, or runs/{FOLDER}-TEACHER-STUDENT")
    add("--device", help="cpu, cuda, ... (default: cuda where there is one)")
    add("--trust-code", action="store_true", help="run code that a model file names")
    for one in fields(Settings):
        add(f"--{one.name.replace('_', '-')}", type=type(one.default), default=one.default,
            help=f"default: {one.default}")  # fmt: skip
    return parser


def _command(options: argparse.Namespace) -> int:
    if options.trust_code:
        user_code.trust("*")
    request, device = read_request(options), usable_device(options.device)
    teacher, *students = [ComparedNetwork(k, o, device) for k, o in request.origins.items()]
    log(f"eval.representation: {', '.join(request.origins)} -> {request.folder} ({device})")
    comparison = Comparison(teacher, students, request.data, request.settings)
    measured, seconds = measure(comparison, request.parts)
    values = {
        **_description(request, comparison),
        "parts": {k: p.values for k, p in measured.items()},
    }
    _write(
        request.folder, values, measured, {"seconds": seconds, "environment": environment(device)}
    )
    if request.run is not None and request.folder == request.run / FOLDER:
        report = write_report(request.run)
    else:
        report = write_representation_report(request.folder)
    console.print(summary_table(values).rich())
    log(f"report: {report}")
    return 0


def read_request(options: argparse.Namespace) -> Request:
    """Check a command line, open its networks' files and its data.

    Raises:
        UserError: something it names is not there, or does not fit.
    """
    settings = Settings(**{one.name: getattr(options, one.name) for one in fields(Settings)})
    _check(settings)
    run = find_run(Path(options.origins[0]))
    if len(options.origins) > 1:
        if options.student:
            raise UserError("--student names students of one run; here networks are given")
        origins = _of_any_origin(options.origins)
    elif run is None:
        raise UserError(f"'{options.origins[0]}' is no run directory; give one, or two networks")
    else:
        origins = _of_run(run, options)
    data, name = _data(options, run, [*origins.values()][1], settings.seed)
    is_of_run = len(options.origins) == 1
    usual = Path("runs") / "-".join((FOLDER, *origins))
    folder = options.out or (run / FOLDER if run is not None and is_of_run else usual)
    return Request(origins, data, name, settings, options.parts, folder, run if is_of_run else None)


def _check(settings: Settings) -> None:
    problems = [
        f"--{name.replace('_', '-')} must be above 0, got {value}"
        for name, value in settings.as_dict().items()
        if name != "seed" and not value > 0
    ]
    if problems:
        raise UserError("; ".join(problems))


def _of_run(run: Path, options: argparse.Namespace) -> dict[str, Origin]:
    """The run's teacher and students, by label."""
    trained = origins_of(run)
    given = Path(options.origins[0])
    if options.student:
        labels = list(dict.fromkeys(options.student))
    elif given.resolve() != run.resolve():
        labels = [open_origin(str(given)).name]
    else:
        labels = [label for label in load_resolved(run).methods if label in trained]
    for label in (options.teacher, *labels):
        if label not in trained:
            known = ", ".join(trained) or "none"
            raise UserError(f"{run} has no '{label}'; it has {known}{nearest(label, trained)}")
    if not labels:
        raise UserError(f"{run} has no trained student yet")
    return {label: open_origin(str(trained[label])) for label in (options.teacher, *labels)}


def _of_any_origin(places: Sequence[str]) -> dict[str, Origin]:
    """Networks by name; a name that is there already gets a number."""
    origins: dict[str, Origin] = {}
    for number, place in enumerate(places, 1):
        origin = open_origin(place)
        name = origin.name if origin.name not in origins else f"{origin.name}-{number}"
        origins[name] = origin
    return origins


def _data(
    options: argparse.Namespace, run: Path | None, student: Origin, seed: int
) -> tuple[Dataset, str]:
    """The data set and its name; images of a folder are prepared as the student's file says."""
    if options.data is not None:
        name = options.dataset or recognise_dataset("linear_probe", options.data)
        open_for = DATASETS[name](options.data, root=str(options.data))
        return open_for(student.preprocessing, seed), options.data.resolve().name
    if run is None:
        raise UserError("give --data FOLDER: none of the networks lies in a run directory")
    recipe = load_resolved(run)
    return dataset_of(recipe), recipe.data.name


def _description(request: Request, comparison: Comparison) -> dict[str, Any]:
    """What was compared on what: names, architectures, digests, settings."""
    networks = {}
    for network in comparison.networks:
        weights = network.origin.weights
        sha256 = None if weights is None else sha256_file(weights)
        networks[network.label] = {**network.describe(), "sha256": sha256}
    test = request.data.test
    return {
        "teacher": comparison.teacher.label,
        "networks": networks,
        "data": {"name": request.data_name, "test_images": len(test), "digest": test.digest()},
        "settings": request.settings.as_dict(),
    }


def _write(
    folder: Path, values: dict[str, Any], parts: Mapping[str, Part], measured: dict[str, Any]
) -> None:
    """Write the pictures, then `result.json` with a record of them."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {name: part.pictures for name, part in parts.items()}
    shown = {
        name: [{"file": p.file, "alt": p.alt, "caption": p.caption} for p in pictures]
        for name, pictures in drawn.items()
    }
    for picture in (picture for pictures in drawn.values() for picture in pictures):
        write_bytes(folder / picture.file, picture.png)
    files = {p["file"]: record(folder / p["file"]) for one in shown.values() for p in one}
    content = {"values": values, "measured": measured, "pictures": shown, "files": files}
    write_json(folder / "result.json", seal(content))
