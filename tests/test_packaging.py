"""The wheel, built from the source distribution and used far from the source tree."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from compress.errors import UserError
from compress.recipe import packaged
from compress.recipe.packaged import packaged_recipes
from tests.waiting import HANG

ROOT = Path(__file__).parents[1]
PACKAGES = ("compress", "export", "eval")
SOURCES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE")
RECIPE = """
data: {name: digits, test_images: 45}
teacher: {model: resnet8, train: {epochs: 2, lr: 0.1, batch_size: 32}}
student: {model: resnet8}
distill: {method: kd, train: {epochs: 1, lr: 0.1}}
export: {int8: {calibration_images: 32}, compile_latency: false}
"""


def python(arguments: Sequence[str], folder: Path, path: Path | None = None) -> str:
    """Run Python in `folder`, with `path` alone on PYTHONPATH; returns what it prints."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_"))}
    environment |= {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    environment["OMP_NUM_THREADS"] = "1"
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=HANG,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source tree, in which building leaves its traces."""
    source = tmp_path_factory.mktemp("source")
    for name in (*PACKAGES, "pipelines"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in SOURCES:
        shutil.copy(ROOT / name, source)
    return source


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution, which must therefore hold all that it takes."""
    folder = tmp_path_factory.mktemp("dist")
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    python(["-c", build], source)
    (sdist,) = folder.glob("*.tar.gz")
    options = ["--no-build-isolation", "--no-deps", "--wheel-dir", str(folder)]
    python(["-m", "pip", "wheel", *options, str(sdist)], folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    python(["-m", "pip", "install", "--no-deps", "--target", str(folder), str(wheel)], folder)
    return folder


def files_below(folder: Path) -> set[str]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {p.relative_to(folder).as_posix() for p in paths if "__pycache__" not in p.parts}


def test_the_wheel_holds_packages_and_recipes_and_nothing_else(source: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {f"{package}/{n}" for package in PACKAGES for n in files_below(ROOT / package)}
    expected |= {f"compress/recipes/{name}" for name in files_below(ROOT / "pipelines")}
    assert names == expected


def test_an_editable_wheel_leaves_the_recipes_where_they_are(source: Path, tmp_path: Path) -> None:
    build = f"from setuptools import build_meta; build_meta.build_editable({str(tmp_path)!r})"
    python(["-c", build], source)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if name.endswith(".yaml")]
    assert not (source / "compress" / "recipes").exists()


def test_the_installed_package_finds_its_own_recipes(installed: Path, tmp_path: Path) -> None:
    code = (
        "import compress, eval, export; from compress.recipe.packaged import packaged_recipes\n"
        "print(compress.__file__, eval.__file__, export.__file__)\n"
        "for name, path in packaged_recipes().items(): print(name, path)"
    )
    modules, *recipes = python(["-c", code], tmp_path, installed).splitlines()
    assert all(Path(file).is_relative_to(installed) for file in modules.split())
    found = dict(line.split(" ", 1) for line in recipes)
    assert found.keys() == packaged_recipes().keys()
    for name, path in found.items():
        assert Path(path).is_relative_to(installed)
        assert Path(path).read_bytes() == packaged_recipes()[name].read_bytes()


def test_the_source_tree_finds_its_recipes_and_a_broken_installation_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = packaged_recipes()
    assert recipes["quickstart"] == ROOT / "pipelines" / "quickstart.yaml"
    assert recipes["tables/simkd_table1"].is_file()
    monkeypatch.setattr(packaged, "_PLACES", (tmp_path,))
    with pytest.raises(UserError, match="install compress again"):
        packaged_recipes()


def test_recipes_are_checked_and_run_from_a_folder_of_its_own(
    installed: Path, tmp_path: Path
) -> None:
    def run(*arguments: str) -> str:
        return python(["-m", *arguments], tmp_path, installed)

    assert "usage:" in run("compress.pipeline", "--help")
    shutil.copy(installed / "compress" / "recipes" / "quickstart.yaml", tmp_path / "mine.yaml")
    run("compress.pipeline", "mine.yaml", "--check")
    (tmp_path / "small.yaml").write_text(RECIPE)
    run("compress.pipeline", "small.yaml")
    assert (tmp_path / "runs" / "small" / "report.html").is_file()
    Image.fromarray(np.full((40, 30, 3), 200, np.uint8)).save(tmp_path / "photo.png")
    said = run("export.bundle.predict_command", "runs/small", "photo.png")
    assert said.startswith("photo.png: ") and " %" in said
