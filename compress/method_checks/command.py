"""List the methods, or check one against the contract: compress methods [--test FILE:CLASS]."""

import argparse
import sys

from compress.console.messages import log
from compress.errors import UserError
from compress.methods import __main__ as listing


def main(arguments: list[str] | None = None) -> int:
    """Print the list, or what the checks found; returns the exit code: 1 where one failed."""
    options = parser().parse_args(arguments)
    if options.test is None:
        return listing.main(["--json"] if options.json else [])
    from compress.console.terminal import print_error

    try:
        return _test(options)
    except UserError as error:
        print_error(str(error))
        return 2


def parser() -> argparse.ArgumentParser:
    """The parser of the command's arguments."""
    parser = listing.parser()
    parser.description = (
        "List the distillation methods, or check that a method of your own keeps what every "
        "method promises, on small networks."
    )
    group = parser.add_argument_group("check a method")
    group.add_argument(
        "--test",
        metavar="FILE:CLASS",
        help="your method (FILE.py:CLASS or package.module:CLASS), or a name of the list; its "
        "code is run",
    )
    group.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an argument of the method, as in a recipe; may be given several times",
    )
    group.add_argument(
        "--student", default="resnet8", metavar="NAME", help="default: %(default)s, 64 channels"
    )
    group.add_argument(
        "--teacher", default="resnet8x4", metavar="NAME", help="default: %(default)s, 256 channels"
    )
    return parser


def _test(options: argparse.Namespace) -> int:
    from compress.method_checks import CHECKS, ContractError, subject

    make = subject(
        options.test, _arguments(options.set), student=options.student, teacher=options.teacher
    )
    failed = 0
    for check in CHECKS:
        sentence = (check.__doc__ or "").strip()
        try:
            check(make)
        except ContractError as error:
            failed += 1
            log(f"failed  {sentence}\n        {_indented(str(error))}")
        except Exception as error:  # whatever a user's own code raises
            failed += 1
            log(f"failed  {sentence}\n        {type(error).__name__}: {_indented(str(error))}")
        else:
            log(f"passed  {sentence}")
    count = len(CHECKS)
    log(f"{options.test}: {count - failed} of {count} checks passed")
    return 1 if failed else 0


def _arguments(given: list[str]) -> dict[str, object]:
    from compress.recipe import apply_override

    values: dict[str, object] = {}
    for one in given:
        apply_override(values, one)
    return values


def _indented(text: str) -> str:
    return text.strip().replace("\n", "\n        ")


if __name__ == "__main__":
    sys.exit(main())
