"""Imports point one way, and no stage is imported before a recipe asks for it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A module may import those of its own rank and of lower ones.
RANKS: list[tuple[str, ...]] = [
    (
        "compress.text",
        "compress.errors",
        "compress.seeding",
        "compress.environment",
        "compress.distributed.collectives",
        "compress.console.terminal",
        "compress.storage.user_files",
    ),
    ("compress.run.launch", "compress.distributed.batchnorm", "compress.engine.optimization"),
    ("compress.recipe", "compress.recipe.yaml_values", "compress.recipe.files"),
    ("compress.console", "compress.recipe.command_line"),
    ("compress.artifacts", "compress.storage.json_files", "compress.recipe.signatures"),
    (
        "compress.data",
        "compress.models",
        "compress.taps",
        "compress.taps.discovery",
        "compress.taps.graph",
        "compress.tasks",
    ),
    ("compress.methods",),
    (
        "compress.distill.module",
        "compress.teacher.inference",
        "compress.engine.compiling",
        "compress.teacher.cache",
        "compress.teacher.shared",
        "compress.engine.lockstep",
        "compress.trackers",
        "compress.model_files.artifacts",
        "compress.model_files.descriptions",
        "compress.engine.checkpoint",
        "compress.engine.loop",
        "compress.accounting",
    ),
    ("compress.stages", "compress.run.train_checks", "export", "eval"),
    ("compress.sweep.schema",),
    ("compress.reporting",),
    ("compress.run.plan", "compress.recipe.partial", "compress.run.place_checks"),
    ("compress.run.part_checks",),
    ("compress.run.checks",),
    ("compress.run.executor", "compress.run.preview"),
    ("compress.run.command",),
    ("compress.pipeline", "compress.sweep.lockstep"),
    ("compress.sweep.processes",),
    ("compress.sweep.runs", "compress.sweep.ray_cluster"),
    ("compress.sweep.execution",),
    ("compress.sweep",),
]


def _rank(module: str) -> int | None:
    for rank, names in enumerate(RANKS):
        if any(module == name or module.startswith(name + ".") for name in names):
            return rank
    return None


def _files() -> list[Path]:
    return [p for top in ("compress", "export", "eval") for p in (ROOT / top).rglob("*.py")]


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__")


def _imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", _files(), ids=_module)
def test_imports_point_one_way(path: Path) -> None:
    module = _module(path)
    own = _rank(module)
    if module == "compress":
        return
    assert own is not None, f"{module} has no rank; give it one in RANKS"
    for name in _imported(path):
        rank = _rank(name)
        assert rank is None or rank <= own, f"{module} imports {name}, which stands above it"


def test_stages_are_not_imported_with_the_command() -> None:
    code = (
        "import sys, compress.run.command;"
        "heavy = [m for m in ('eval.detection', 'export.onnx', 'onnxruntime', 'matplotlib',"
        " 'compress.stages.account') if m in sys.modules]; sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", ["compress.pipeline", "compress.sweep"])
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
