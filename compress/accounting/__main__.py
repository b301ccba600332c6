"""The command: costs saved by a student against its teacher, and added by a method.

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
from compress.console.terminal import print_error
from compress.errors import UserError
from compress.recipe.files import add_set_option, with_overrides

_ROLES = ("teacher", "student", "deployed")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code (0 done, 2 user error)."""
    args = parser().parse_args(arguments)
    try:
        costs = account_pair(
            teacher=args.teacher,
            student=args.student,
            method={**with_overrides({}, args), "name": args.method},
            num_classes=args.classes,
            input_shape=(3, args.image_size, args.image_size),
            latency_rounds=args.latency,
        )
    except UserError as error:
        print_error(str(error))
        return 2
    if args.json:
        print(json.dumps(costs, indent=2))
    else:
        _show(costs)
    return 0


def parser() -> argparse.ArgumentParser:
    """The parser of the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="compress account",
        description="Count a teacher, a student and a deployed network; nothing is trained.",
    )
    parser.add_argument("--teacher", required=True, metavar="MODEL", help="name of a network")
    parser.add_argument("--student", required=True, metavar="MODEL", help="name of a network")
    parser.add_argument("--method", default="none", help="a distillation method (default: none)")
    add_set_option(parser, explanation="an argument of the method")
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


def _show(result: Mapping[str, Any]) -> None:
    """Costs of each network, ratios of the deployed one, and what the MACs leave out."""
    channels, height, width = result["input_shape"]
    title = f"{result['num_classes']} classes, {channels} x {height} x {width} images"
    costs = Table("network", "", title=title)
    costs.columns[1].overflow = "fold"  # of a long name nothing is cut
    for heading in ("parameters", "MACs", "FLOPs"):
        costs.add_column(heading, justify="right")
    names = {**result, "deployed": result["method"]["name"]}
    for role in _ROLES:
        numbers = (f"{result[f'{role}_{key}']:,}" for key in ("parameters", "macs", "flops"))
        costs.add_row(role, names[role], *numbers)
    console.print(costs)
    ratios = Table("deployed against teacher and plain student", "")
    ratios.columns[1].justify = "right"
    for label, text in _ratios(result):
        ratios.add_row(label, text)
    console.print(ratios)
    for role in _ROLES:
        for operator, calls in result[f"{role}_uncounted_operators"].items():
            console.print(f"{role}: {calls} x {operator} not in its MACs")


def _ratios(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("pruning ratio", f"{result['pruning_ratio_percent']:.2f} %"),
        ("pruning ratio of the plain student", f"{result['plain_pruning_ratio_percent']:.2f} %"),
        ("cost in pruning ratio", f"{result['pruning_ratio_cost_points']:.2f} points"),
        ("projector", f"{result['projector_parameters']:,} parameters"),
        ("projector / student", f"{result['projector_to_student_percent']:.2f} %"),
        ("MACs saved", f"{result['macs_saved_percent']:.2f} %"),
    ]
    if result["speedup_percent"] is not None:
        large, small = result["teacher_latency_ms"], result["deployed_latency_ms"]
        rows.append(("latency, batch 1, folded, CPU", f"{large:.2f} -> {small:.2f} ms"))
        rows.append(("speed-up (1 - student / teacher)", f"{result['speedup_percent']:.2f} %"))
    return rows


if __name__ == "__main__":
    sys.exit(main())
