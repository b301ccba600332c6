"""List the methods: python -m compress.methods [--json]."""

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

from compress.methods import METHODS
from compress.methods.contract import Method
from compress.recipe import signatures


def describe(name: str, method: type[Method]) -> dict[str, Any]:
    """Name, title, arguments, and taps and weights by default, as values for JSON."""
    needs = method.needs({})
    module = sys.modules[method.__module__].__doc__ or ""
    return {
        "name": name,
        "title": module.strip().splitlines()[0],
        "student_taps": list(method.student_taps),
        "teacher_taps": list(needs.teacher_taps),
        "batch_coupled": needs.batch_coupled,
        "protocols": {key: asdict(terms) for key, terms in needs.protocols.items()},
        "arguments": signatures.schema(method),
    }


def main(arguments: list[str] | None = None) -> int:
    """Print the list; returns the exit code."""
    options = parser().parse_args(arguments)
    methods = [describe(name, method) for name, method in METHODS.items()]
    if options.json:
        print(json.dumps(methods, indent=2))
        return 0
    width = max(map(len, METHODS))
    for method in methods:
        print(f"{method['name']:<{width}}  {method['title']}")
    return 0


def parser() -> argparse.ArgumentParser:
    """The parser of the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="compress methods", description="List the distillation methods."
    )
    parser.add_argument("--json", action="store_true", help="for programs, with every argument")
    return parser


if __name__ == "__main__":
    sys.exit(main())
