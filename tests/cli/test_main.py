"""The command: verbs, their help, completion; nothing heavy before a verb needs it."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from compress.cli import main
from compress.cli.verbs import TASKS, VERBS, Verb

ROOT = Path(__file__).parents[2]
# Options of commands that are no verb, and of other programs.
OF_OTHERS = {"--version", "--nproc-per-node", "--describe", "--stem"}
COLOURS = ("stylesheet.py", "drawing.py")  # whose variables begin with two hyphens as well


def _commands() -> Iterator[tuple[str, Verb]]:
    for name, verb in VERBS.items():
        if isinstance(verb, Verb):
            yield f"compress {name}", verb
        else:
            yield from ((f"compress {name} {task}", one) for task, one in verb.items())


@pytest.mark.parametrize(("prog", "verb"), [*_commands()], ids=str)
def test_every_verb_has_a_parser_that_says_what_it_is_called(prog: str, verb: Verb) -> None:
    parser = verb.build_parser()
    assert parser.prog == prog
    assert parser.description
    for action in parser._actions:
        assert action.help or not action.option_strings, f"{prog} {action.option_strings}: no help"


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["eval", "--help"], ["run", "-h"]])
def test_help_does_not_wait_for_torch(words: list[str]) -> None:
    code = (
        "import sys\nfrom compress.cli import main\n"
        "try:\n    code = main(sys.argv[1:])\nexcept SystemExit as end:\n    code = end.code\n"
        "assert code == 0 and 'torch' not in sys.modules, code"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "compress" in done.stdout


def test_the_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    listed = capsys.readouterr().out
    assert all(f"\n  {name} " in listed for name in VERBS)
    assert main(["eval"]) == 2
    listed = capsys.readouterr().out
    assert all(f"\n  {name} " in listed for name in TASKS)


def test_a_misspelt_verb_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chek", "recipe.yaml"]) == 2
    assert "no verb 'chek'" in (said := capsys.readouterr().out)
    assert "did you mean 'check'?" in said
    assert main(["eval", "kn", "runs/x"]) == 2
    assert "did you mean 'knn'?" in capsys.readouterr().out


def test_a_recipe_alone_is_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["missing.yaml"]) == 2
    assert "recipe 'missing.yaml' not found" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("compress ru", {"run"}),
        ("compress eval k", {"knn"}),
        ("compress run --o", {"--out"}),
        ("compress eval knn --datas", {"--dataset"}),
        ("compress check --no-t", {"--no-timing"}),
    ],
)
def test_tab_completes_verbs_tasks_and_options(
    line: str, expected: set[str], tmp_path: Path
) -> None:
    answer = tmp_path / "answer"
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    asked |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "_ARGCOMPLETE_IFS": "\n"}
    code = "from compress.cli import main; main()"
    subprocess.run([sys.executable, "-c", code], env=os.environ | asked, check=True)
    assert {word.strip() for word in answer.read_text().split("\n")} == expected


def test_the_completion_script_is_bashs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    assert "complete " in capsys.readouterr().out


def test_the_report_is_that_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "is no run directory" in capsys.readouterr().err


def test_every_option_that_a_message_names_exists() -> None:
    known = {option for _, verb in _commands() for a in verb.build_parser()._actions
             for option in a.option_strings}  # fmt: skip
    named: dict[str, str] = {}
    for top in ("compress", "export", "eval"):
        files = (file for file in (ROOT / top).rglob("*.py") if file.name not in COLOURS)
        for file in files:
            tree = ast.parse(file.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", node.value):
                        named[option] = f"{file.relative_to(ROOT)}:{node.lineno}"
    missing = {option: place for option, place in named.items() if option not in known}
    assert {o: p for o, p in missing.items() if o not in OF_OTHERS} == {}
