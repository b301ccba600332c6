"""The verbs of the command: what each does, and the module whose command it is."""

import argparse
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any


@dataclass(frozen=True)
class Verb:
    """A verb, or a task of a verb: `main(arguments) -> exit code` and `parser()` of a module.

    `first` are arguments that both functions get before any other.
    """

    summary: str
    module: str
    main: str = "main"
    parser: str = "parser"
    first: tuple[str, ...] = ()

    def run(self, arguments: list[str]) -> int:
        """Run the command with these arguments; returns its exit code."""
        code: int = self._function(self.main)(arguments)
        return code

    def build_parser(self) -> argparse.ArgumentParser:
        """The parser of its arguments."""
        parser: argparse.ArgumentParser = self._function(self.parser)()
        return parser

    def _function(self, name: str) -> Any:
        return partial(getattr(importlib.import_module(self.module), name), *self.first)


def _transfer(task: str, summary: str) -> Verb:
    return Verb(summary, "eval.transfer.command", first=(task,))


TASKS: Mapping[str, Verb] = {
    "linear_probe": _transfer("linear_probe", "a linear classifier on frozen embeddings"),
    "knn": _transfer("knn", "nearest neighbours among embeddings"),
    "detection": _transfer("detection", "Faster or Mask R-CNN over the encoder"),
    "segmentation": _transfer("segmentation", "PSPNet over the encoder"),
    "representation": Verb(
        "how alike the representations of students and teacher are", "eval.representation.command"
    ),
}

# Groups of verbs by their heading in the help. A verb of several tasks has a table of its own.
GROUPS: Mapping[str, Mapping[str, Verb | Mapping[str, Verb]]] = {
    "From images to a student": {
        "init": Verb("write a commented recipe for your images", "compress.cli.init"),
        "check": Verb(
            "look at a recipe, its data and this machine; train nothing",
            "compress.pipeline",
            "check",
            "check_parser",
        ),
        "run": Verb(
            "run a recipe: teacher, students, export, transfer, report", "compress.pipeline"
        ),
        "report": Verb("write the report of a run, as far as it is", "compress.cli.report"),
    },
    "What ships": {
        "export": Verb("write a student of a run as a bundle of ONNX files", "export.__main__"),
        "verify": Verb("check that a bundle computes what was trained", "export.verify.command"),
        "predict": Verb("run a bundle on images", "export.bundle.predict_command"),
        "push": Verb("upload a bundle to the Hugging Face Hub", "export.hub"),
    },
    "Comparisons": {
        "methods": Verb(
            "list the distillation methods, or check one of your own",
            "compress.method_checks.command",
        ),
        "account": Verb(
            "count parameters and MACs of a teacher and a student", "compress.accounting.__main__"
        ),
        "sweep": Verb("train a table: methods, pairs, trials", "compress.sweep.command"),
        "eval": TASKS,
    },
}
SUMMARIES = {"eval": "transfer a student's encoder to other tasks"}  # of verbs of several tasks
VERBS: Mapping[str, Verb | Mapping[str, Verb]] = {
    name: verb for group in GROUPS.values() for name, verb in group.items()
}
