"""The command: run or skip each planned stage of a recipe, then point at the report.

python -m compress.pipeline RECIPE.yaml [--set key.path=value] [--out DIR] [--until STAGE]
                            [--check] [--fresh STAGE] [--device D] [--schema]
"""

import argparse
import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.table import Table

from compress import checks, plan
from compress.artifacts import (
    Job,
    Outcome,
    RunDirectory,
    fingerprint_of,
    read_result,
    write_json,
    write_text,
)
from compress.checks import Shapes
from compress.console import console, log, log_to, note
from compress.environment import environment
from compress.errors import UserError, exit_code, nearest
from compress.models import user_code
from compress.plan import Plan, Step
from compress.recipe import Recipe, check_shape
from compress.recipe_files import apply_override, read_yaml
from compress.stages import dataset_of


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code (0 done, 2 user error, 130 interrupted)."""
    return reported(lambda: _command(_parser().parse_args(arguments)))


def reported(command: Callable[[], int]) -> int:
    """The exit code of a command that can be continued; mistakes are told on the console."""

    def stoppable() -> int:
        try:
            return command()
        except KeyboardInterrupt:
            console.print("interrupted; run the same command again to continue where it stopped")
            return 130

    def tell(message: str) -> None:
        console.print(f"error: {message}", style="red", markup=False, soft_wrap=True)

    return exit_code(stoppable, tell)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m compress.pipeline",
        description="Run a recipe: teacher, distill, fuse, account, export, transfer, report.",
    )
    parser.add_argument("recipe", nargs="?", type=Path, help="a YAML file, see pipelines/")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY.PATH=VALUE",
        dest="overrides",
        help="change one value of the recipe; may be repeated",
    )
    parser.add_argument("--out", type=Path, help="the run directory (default: runs/RECIPE NAME)")
    parser.add_argument("--until", metavar="STAGE", help="stop after this stage")
    parser.add_argument(
        "--fresh",
        action="append",
        default=[],
        metavar="STAGE",
        help="redo this stage, and what follows where its result differs; the old one is kept",
    )
    parser.add_argument(
        "--trust-code", action="store_true", help="run code that a model file names"
    )
    parser.add_argument("--check", action="store_true", help="check the recipe, run nothing")
    parser.add_argument("--schema", action="store_true", help="print the recipe's JSON schema")
    parser.add_argument(
        "--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)"
    )
    parser.add_argument(
        "--workers", type=_count, default=2, help="processes that decode image files (default: 2)"
    )
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a number from 0 up, got '{text}'")
    return int(text)


def _command(options: argparse.Namespace) -> int:
    if options.schema:
        print(json.dumps(plan.schema(), indent=2))
        return 0
    if options.recipe is None:
        raise UserError(
            "no recipe given; try: python -m compress.pipeline pipelines/quickstart.yaml"
        )
    recipe = load(options.recipe, options.overrides)
    for name in ("*",) if options.trust_code else _models(recipe):
        user_code.trust(name)
    shapes, problems = checks.probe(recipe)
    if problems:
        raise UserError(listed(options.recipe, problems))
    planned = plan.make_plan(recipe)
    for name in (*options.fresh, *([options.until] if options.until else [])):
        _check_stage(name, planned)
    device = _device(options.device)
    if options.check:
        _show(planned, shapes)
        return 0
    folder = options.out or Path("runs") / options.recipe.stem
    _refuse_own_teacher(recipe, folder)
    run = RunDirectory(folder, options.recipe.stem)
    with run.open(), log_to(folder / "log.txt"):
        write_text(folder / "recipe.yaml", options.recipe.read_text(encoding="utf-8"))
        resolved = recipe.model_dump(mode="json")
        write_text(folder / "resolved.yaml", yaml.safe_dump(resolved, sort_keys=False))
        write_json(folder / "environment.json", environment(device))
        log(f"{options.recipe} -> {folder} ({device})")
        try:
            _run(planned, run, options, device)
        except UserError as error:
            note(f"error: {error}")
            raise
    return 0


def _models(recipe: Recipe) -> list[str]:
    """The networks that the recipe names: their code is its user's choice."""
    parts = [recipe.student.model, *(teacher.model for teacher in recipe.teacher)]
    return [part.name for part in parts if part is not None]


def load(path: Path, overrides: list[str]) -> Recipe:
    """Read, change and check a recipe; every problem is in the `UserError`."""
    raw = read_yaml(path)
    for assignment in overrides:
        apply_override(raw, assignment)
    recipe, problems = check_shape(raw)
    if recipe is not None:
        problems = checks.check_recipe(recipe)
    if recipe is None or problems:
        raise UserError(listed(path, problems))
    return recipe


def _refuse_own_teacher(recipe: Recipe, folder: Path) -> None:
    """A teacher inside this run's own teacher folder would be moved aside before it is read."""
    own = (folder / "teacher").resolve()
    for teacher in recipe.teacher:
        given = teacher.checkpoint or teacher.weights
        if given is not None and own in Path(given).resolve().parents:
            raise UserError(
                f"teacher: '{given}' lies inside this very run directory; copy it elsewhere or "
                "choose another directory with --out"
            )


def listed(path: Path, problems: list[str]) -> str:
    """The problems of a file as one message."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return f"{path} has {count}:\n" + "\n".join(f"  {problem}" for problem in problems)


def _check_stage(name: str, planned: Plan) -> None:
    known = list(dict.fromkeys(n for s in planned.steps for n in (s.stage, s.name)))
    if name not in known:
        raise UserError(
            f"unknown stage '{name}'; this recipe has {', '.join(known)}{nearest(name, known)}"
        )


def _device(given: str | None) -> torch.device:
    name = given or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name} cannot be used here: {reason}") from None
    return device


def _run(
    planned: Plan, run: RunDirectory, options: argparse.Namespace, device: torch.device
) -> None:
    data_digest = dataset_of(planned.recipe).digest()
    run.shelve_unplanned([step.name for step in planned.steps])
    digests: dict[str, str] = {}
    stopped = False
    for step in planned.steps:
        fields = _fields(step, data_digest, digests)
        if not stopped:
            _run_step(step, fields, planned.recipe, run, options, device)
        elif not run.finished(step.name, fields):
            continue
        digests[step.name] = _found(run, step)
        following = planned.steps[planned.steps.index(step) + 1 :]
        is_last = all(s.stage != step.stage for s in following)
        if step.name == options.until or (step.stage == options.until and is_last):
            log(f"stopped after {options.until}, as asked")
            stopped = True
    run.mark_current(list(digests))
    reporting = importlib.import_module("compress.reporting")
    report = reporting.write_report(run.folder)
    console.print(reporting.terminal_table(run.folder))
    log(f"report: {report}")


def finished(recipe: Recipe, folder: Path, until: str | None = None) -> bool:
    """Whether a run directory holds the result of every stage (up to one) of a checked recipe."""
    planned = plan.make_plan(recipe)
    run = RunDirectory(folder, folder.name)
    data_digest = dataset_of(recipe).digest()
    digests: dict[str, str] = {}
    for step in planned.steps:
        if not run.finished(step.name, _fields(step, data_digest, digests)):
            return False
        digests[step.name] = _found(run, step)
        if until in (step.name, step.stage):
            break
    return True


def _fields(step: Step, data_digest: str, digests: dict[str, str]) -> dict[str, Any]:
    """Everything that a step's result depends on."""
    return {
        "version": step.version,
        **step.fields,
        "images": data_digest,
        "inputs": {name: digests.get(name) for name in step.inputs},
    }


def _found(run: RunDirectory, step: Step) -> str:
    """What follows a step depends on what was found there, not only on what was asked for."""
    found = read_result(run.folder, step.name)
    return fingerprint_of({k: found[k] for k in ("fingerprint", "values")})


def _run_step(
    step: Step,
    fields: dict[str, Any],
    recipe: Recipe,
    run: RunDirectory,
    options: argparse.Namespace,
    device: torch.device,
) -> None:
    fresh = step.name in options.fresh or step.stage in options.fresh
    if not fresh and run.finished(step.name, fields):
        log(f"{step.name}: done before, skipped")
        return
    differences = run.differences(step.name, fields)
    if fresh or differences:
        reason = "--fresh" if fresh else "changed: " + ", ".join(differences)
        old = run.supersede(step.name)
        if old is not None:
            log(f"{step.name}: redone ({reason}); the old result is in {old}")
    if not fresh and not run.stage_folder(step.name).exists() and run.restore(step.name, fields):
        log(f"{step.name}: what was done earlier fits again, restored")
        if run.finished(step.name, fields):
            return
    log(f"{step.name}")
    job = Job(
        name=step.name,
        folder=run.begin(step.name, fields),
        run_folder=run.folder,
        recipe=recipe,
        arguments=step.arguments,
        device=device,
        workers=options.workers,
        recipe_fingerprint=_recipe_fingerprint(recipe),
    )
    start = time.perf_counter()
    outcome: Outcome = importlib.import_module(step.module).run(job)
    seconds = time.perf_counter() - start
    told = {"seconds": seconds, "environment": environment(device)}
    run.finish(step.name, fields, Outcome(outcome.values, {**outcome.measured, **told}))
    log(f"{step.name}: {seconds:.1f} s")


def _recipe_fingerprint(recipe: Recipe) -> str:
    """Names the recipe in model files; where the data lie does not matter."""
    content = recipe.model_dump(mode="json")
    content["data"].pop("root", None)
    return fingerprint_of(content)


def _show(planned: Plan, shapes: Shapes | None) -> None:
    """What `--check` prints: the stages, and where each network is tapped."""
    table = Table("stage", "reads", title="Plan")
    for step in planned.steps:
        table.add_row(step.name, ", ".join(step.inputs))
    console.print(table)
    if shapes is None:
        return
    taps = Table("network", "tap", "module", "shape", "stride", title="Taps")
    for role, (name, specs) in (
        *(("teacher", t) for t in shapes.teachers),
        ("student", shapes.student),
    ):
        maps = [("stage", spec) for spec in specs.stages]
        maps += [("pre-activation", spec) for spec in specs.pre_activations]
        maps += [("last map", specs.last_map)] if specs.last_map else []
        for kind, spec in maps:
            where = spec.path if spec.side == "output" else f"input of {spec.path}"
            shape = f"{spec.channels} x {spec.height} x {spec.width}"
            taps.add_row(f"{role} {name}", kind, where, shape, str(spec.stride))
        pooled = (f"input of {specs.classifier}", str(specs.pooled_width))
        taps.add_row(f"{role} {name}", "pooled", *(pooled if specs.classifier else ("none", "")))
    console.print(taps)
    adapters = Table("method", "trains beside the student", "parameters", title="Adapters")
    for label, method in shapes.methods.items():
        parts = [
            f"{name} ({type(child).__name__})"
            for name, child in method.named_children()
            if any(p.requires_grad for p in child.parameters())
        ]
        count = sum(p.numel() for p in method.parameters() if p.requires_grad)
        adapters.add_row(label, ", ".join(parts) or "nothing", f"{count:,}")
    console.print(adapters)
    console.print("The recipe is in order.")


if __name__ == "__main__":
    sys.exit(main())
