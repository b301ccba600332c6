"""Imports point one way, and no stage is imported before a recipe asks for it.

An import counts wherever it stands, in a function too, and so does the path of a module in a
string, as in a table of stages or in `python -m`.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests import processes

ROOT = Path(__file__).parents[1]
TOPS = ("compress", "export", "eval")
MOST_FLOORS = 12  # the command stands on everything
MOST_MODULES_IN_COMPRESS = 6

Graph = Mapping[str, set[str]]


def _modules() -> dict[str, Path]:
    """Dotted path -> file of every module; that of a package is its `__init__.py`."""
    files = [file for top in TOPS for file in sorted((ROOT / top).rglob("*.py"))]
    parts = {file: file.relative_to(ROOT).with_suffix("").parts for file in files}
    return {".".join(p for p in parts[file] if p != "__init__"): file for file in files}


def _names(tree: ast.AST) -> Iterator[str]:
    """What the source of a module imports or names in a string."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            # The names of the three packages are words, too, and sentences name keys of a recipe.
            yield from [node.value] if re.fullmatch(r"\w+(\.\w+)+(:\w+)?", node.value) else []


def _package(module: str) -> str:
    """`compress.run` of `compress.run.plan`; `export` and `eval` are packages as a whole."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "compress" else parts[0]


def imports_of_packages() -> Graph:
    """Package -> the packages that it needs."""
    modules = _modules()
    graph: dict[str, set[str]] = {_package(module): set() for module in modules}
    for module, file in modules.items():
        for name in _names(ast.parse(file.read_text(encoding="utf-8"))):
            known = [n for n in (name, name.rpartition(".")[0]) if n in modules]
            needed = {_package(n) for n in known[:1]}
            graph[_package(module)] |= needed - {_package(module)}
    return graph


def floors_of(graph: Graph) -> dict[str, int]:
    """Package -> its floor: 1, or one above the highest of those that it needs."""
    floors: dict[str, int] = {}
    for package in TopologicalSorter(graph).static_order():
        floors[package] = 1 + max((floors[needed] for needed in graph[package]), default=0)
    return floors


def test_no_package_is_in_a_circle_and_the_house_is_low() -> None:
    graph = imports_of_packages()
    assert {"compress.run", "compress.methods", "export", "eval"} <= graph.keys()
    try:
        floors = floors_of(graph)
    except CycleError as error:
        raise AssertionError(f"a circle of packages: {' -> '.join(error.args[1])}") from None
    assert max(floors.values()) <= MOST_FLOORS, sorted(floors.items(), key=lambda one: one[1])


def test_circles_and_floors_are_seen_where_there_are_some() -> None:
    assert floors_of({"a": {"b"}, "b": {"c"}, "c": set()}) == {"c": 1, "b": 2, "a": 3}
    try:
        floors_of({"a": {"b"}, "b": {"a"}})
    except CycleError as error:
        assert {*error.args[1]} == {"a", "b"}
    else:
        raise AssertionError("the circle was not seen")
    source = "def f():\n    from compress.run import plan\n    return 'eval.transfer.stage'"
    assert {*_names(ast.parse(source))} == {"compress.run.plan", "eval.transfer.stage"}


def test_what_runs_a_recipe_knows_no_stage_outside_compress() -> None:
    needed = imports_of_packages()["compress.run"]
    assert not needed & {"eval", "export", "compress.pipeline", "compress.sweep"}


def test_few_modules_stand_directly_in_compress() -> None:
    modules = [file.stem for file in (ROOT / "compress").glob("*.py") if file.stem != "__init__"]
    assert len(modules) <= MOST_MODULES_IN_COMPRESS, modules


def test_stages_are_not_imported_with_the_command(tmp_path: Path) -> None:
    code = (
        "import sys, compress.run.command;"
        "heavy = [m for m in ('eval.detection', 'export.onnx', 'onnxruntime', 'matplotlib',"
        " 'compress.stages.account') if m in sys.modules]; sys.exit(str(heavy) if heavy else 0)"
    )
    assert processes.run(["-c", code], tmp_path / "output.txt") == (0, "")


@pytest.mark.parametrize("command", ["compress.pipeline", "compress.sweep.command"])
@pytest.mark.parametrize("options", [["--help"], ["--no-such-option"], ["missing.yaml"]])
def test_nobody_waits_for_torch_to_read_of_a_mistake(command: str, options: list[str]) -> None:
    code = (
        f"import sys, {command} as command\n"
        "try:\n"
        "    code = command.main(sys.argv[1:])\n"
        "except SystemExit as end:\n"
        "    code = end.code\n"
        "assert 'torch' not in sys.modules\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *options], capture_output=True, text=True)
    assert done.returncode == (0 if options == ["--help"] else 2), done.stderr
    assert done.stdout + done.stderr
