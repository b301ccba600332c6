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
        "compress.randomness",
        "compress.environment",
        "compress.ranks",
        "compress.terminal",
        "compress.user_files",
    ),
    ("compress.launch", "compress.rank_norm", "compress.optimisation"),
    ("compress.recipe", "compress.yaml_values", "compress.recipe_files"),
    ("compress.console", "compress.options"),
    ("compress.artifacts", "compress.described_files", "compress.signatures"),
    (
        "compress.data",
        "compress.models",
        "compress.taps",
        "compress.tap_discovery",
        "compress.tapped_graph",
        "compress.tasks",
    ),
    ("compress.methods",),
    (
        "compress.distillation",
        "compress.frozen",
        "compress.compiled",
        "compress.teacher_cache",
        "compress.teachers",
        "compress.side_by_side",
        "compress.trackers",
        "compress.deployment",
        "compress.descriptions",
        "compress.checkpoint",
        "compress.training",
        "compress.accounting",
    ),
    ("compress.stages", "compress.train_checks", "export", "eval"),
    ("compress.sweep_recipe",),
    ("compress.reporting",),
    ("compress.plan", "compress.mending", "compress.place_checks"),
    ("compress.part_checks",),
    ("compress.checks",),
    ("compress.running", "compress.preview"),
    ("compress.execution",),
    ("compress.pipeline", "compress.together"),
    ("compress.sweep_processes",),
    ("compress.sweep_runs", "compress.sweep_ray"),
    ("compress.sweep_execution",),
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
        "import sys, compress.execution;"
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
