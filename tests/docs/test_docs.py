"""Documentation that works: it builds, its commands exist, and its first hour is run."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from compress.cli import main
from compress.cli.verbs import TASKS, VERBS, Verb
from compress.recipe.files import read_yaml
from tests.quick import quick_commands

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks_of(text: str) -> Iterator[str]:
    """Indented and fenced code of a page."""
    yield from re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S)
    yield from re.findall(r"(?:^    .*\n?)+", text, re.M)


def commands_of(page: Path) -> Iterator[list[str]]:
    """The words of every line of code that calls `compress`; a line that goes on is joined."""
    for block in blocks_of(page.read_text(encoding="utf-8")):
        joined = re.sub(r"\n\s+\[", " [", block)
        for line in joined.splitlines():
            if re.match(r"\s*compress [a-z]", line):
                code = line.partition("  #")[0]
                yield re.sub(r"[\[\]|]", " ", code).split()


def verb_of(words: list[str]) -> Verb:
    verb = VERBS[words[1]]
    return verb if isinstance(verb, Verb) else TASKS[words[2]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_on_a_page_exists_with_its_options(page: Path) -> None:
    for words in commands_of(page):
        if words[1] == "completion":
            continue
        known = {
            o for action in verb_of(words).build_parser()._actions for o in action.option_strings
        }
        for word in words:
            option = word.partition("=")[0]
            assert not option.startswith("-") or option in known, f"{' '.join(words)}: {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(
        r"\b((?:pipelines|benchmarks|tests|compress|docs)/[\w./-]+\.(?:yaml|md|py))", text
    )
    assert [file for file in named if not (ROOT / file).exists() and "NAME" not in file] == []
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    generated = {"recipe.md", "commands.md", "numbers.md"}
    missing = [
        link
        for link in links
        if not (page.parent / link).exists() and Path(link).name not in generated
    ]
    assert missing == []


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    recipe = (tmp_path / "reference/recipe.html").read_text(encoding="utf-8")
    assert "allow_chance_level" in recipe and "milestones" in recipe
    assert "--budget-mb" in (tmp_path / "reference/commands.html").read_text(encoding="utf-8")
    assert "export_bundle" in (tmp_path / "reference/api.html").read_text(encoding="utf-8")
    pages = "".join(page.read_text(encoding="utf-8") for page in tmp_path.rglob("*.html"))
    assert not re.search(r'(?:src|href)="https?://(?!squidfunk)', pages), "a page fetches something"


def test_the_five_commands_of_the_readme_are_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As they stand there, but for a short training, which `run` is told by --set."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("cat", "dog", "owl")):
        (folder := Path("photos", name)).mkdir(parents=True)
        for i in range(20):
            colour = [40, 40, 40]
            colour[number] = 160 + 4 * i
            Image.new("RGB", (44 + i, 40), tuple(colour)).save(folder / f"{i}.jpg")
    Image.new("RGB", (300, 200), (30, 220, 30)).save("photo.jpg")

    section = (ROOT / "README.md").read_text().split("## Your photos in five commands")[1]
    install, *commands = next(blocks_of(section)).strip().splitlines()
    assert install.strip() == "pip install ."
    assert len(commands) == 4
    for command in commands:
        _, verb, *rest = shlex.split(command)
        if verb == "run":
            rest += shlex.split("--set teacher.train.epochs=4 --set distill.train.epochs=4")
        with quick_commands():
            assert (
                main([verb, *rest, *(["--device", "cpu"] if verb in ("run", "check") else [])]) == 0
            )
    said = capsys.readouterr().out
    assert "The recipe is in order." in said
    assert re.search(r"photo\.jpg", said)
    assert read_yaml(Path("photos.yaml"))["data"]["root"] == "photos"
    assert Path("runs/photos/report.html").is_file()
    assert Path("runs/photos/export/bundle/student.onnx").is_file()
