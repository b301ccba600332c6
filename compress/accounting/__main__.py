"""The command: what a student saves against its teacher and what a method adds to it.

python -m compress.accounting --teacher resnet32x4 --student resnet8x4 --method simkd
                              [--set reduction=2] [--classes 100] [--image-size 32]
                              [--latency ROUNDS] [--json]
"""

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from compress.accounting.pairs import account_pair
from compress.console.messages import console
from compress.console.terminal import tell
from compress.errors import UserError
from compress.recipe.files import apply_override

_ROLES = ("teacher", "student", "deployed")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code (0 done, 2 user error)."""
    options = _parser().parse_args(arguments)
    try:
        method: dict[str, Any] = {}
        for assignment in options.settings:
            apply_override(method, assignment)
        found = account_pair(
            teacher=options.teacher,
            student=options.student,
            method={**method, "name": options.method},
            num_classes=options.classes,
            input_shape=(3, options.image_size, options.image_size),
            latency_rounds=options.latency,
        )
    except UserError as error:
        tell(str(error))
        return 2
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        _show(found)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m compress.accounting",
        description="Count a teacher, a student and what a method ships; nothing is trained.",
    )
    parser.add_argument("--teacher", required=True, metavar="MODEL")
    parser.add_argument("--student", required=True, metavar="MODEL")
    parser.add_argument("--method", default="none", help="a distillation method (default: none)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="an argument of the method; may be repeated",
    )
    parser.add_argument("--classes", type=int, default=100, help="default: 100")
    parser.add_argument("--image-size", type=int, default=32, metavar="PIXELS", help="default: 32")
    parser.add_argument(
        "--latency",
        type=int,
        default=0,
        metavar="ROUNDS",
        help="also time this many forwards of one image on the CPU (default: 0, none)",
    )
    parser.add_argument("--json", action="store_true", help="print every number as JSON")
    return parser


def _show(found: Mapping[str, Any]) -> None:
    """Costs of each network, ratios of the deployed one, and what the MACs leave out."""
    channels, height, width = found["input_shape"]
    title = f"{found['num_classes']} classes, {channels} x {height} x {width} images"
    costs = Table("network", "", title=title)
    costs.columns[1].overflow = "fold"  # a name is shown whole
    for heading in ("parameters", "MACs", "FLOPs"):
        costs.add_column(heading, justify="right")
    names = {**found, "deployed": found["method"]["name"]}
    for role in _ROLES:
        numbers = (f"{found[f'{role}_{key}']:,}" for key in ("parameters", "macs", "flops"))
        costs.add_row(role, names[role], *numbers)
    console.print(costs)
    ratios = Table("deployed against teacher and plain student", "")
    ratios.columns[1].justify = "right"
    for label, text in _ratios(found):
        ratios.add_row(label, text)
    console.print(ratios)
    for role in _ROLES:
        for operator, calls in found[f"{role}_uncounted_operators"].items():
            console.print(f"{role}: {calls} x {operator} not in its MACs")


def _ratios(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("pruning ratio", f"{found['pruning_ratio_percent']:.2f} %"),
        ("pruning ratio of the plain student", f"{found['plain_pruning_ratio_percent']:.2f} %"),
        ("cost in pruning ratio", f"{found['pruning_ratio_cost_points']:.2f} points"),
        ("projector", f"{found['projector_parameters']:,} parameters"),
        ("projector / student", f"{found['projector_to_student_percent']:.2f} %"),
        ("MACs saved", f"{found['macs_saved_percent']:.2f} %"),
    ]
    if found["speedup_percent"] is not None:
        large, small = found["teacher_latency_ms"], found["deployed_latency_ms"]
        rows.append(("latency, batch 1, folded, CPU", f"{large:.2f} -> {small:.2f} ms"))
        rows.append(("speed-up (1 - student / teacher)", f"{found['speedup_percent']:.2f} %"))
    return rows


if __name__ == "__main__":
    sys.exit(main())
