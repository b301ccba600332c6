"""`compress init`: a commented recipe for a folder of photos, or one of the package's own."""

import argparse
import re
import shutil
import sys
from pathlib import Path

from compress.console.ending import exit_code
from compress.console.terminal import console
from compress.errors import UserError, nearest
from compress.recipe.packaged import packaged_recipes

_QUESTIONS = {
    "images": "Folder of images, with a folder for each class",
    "teacher": "Teacher: a network, MODEL@FILE of its weights, or Enter for a usual one",
    "budget_mb": "Most megabytes of the student's file, or Enter for no limit",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 0, 2 after a user's mistake, 130 interrupted."""
    options = parser().parse_args(arguments)
    return exit_code(lambda: _command(options))


def parser() -> argparse.ArgumentParser:
    """The parser of the command's arguments."""
    parser = argparse.ArgumentParser(
        prog="compress init",
        description="Write a commented recipe for your images. What is not given is asked for, "
        "where there is somebody to ask.",
    )
    add = parser.add_argument
    add("out", nargs="?", type=Path, help="the file to write (default: FOLDER's name.yaml)")
    add("--images", metavar="FOLDER", help="CLASS/*.jpg, or train/CLASS/*.jpg and test/CLASS/*.jpg")
    add(
        "--teacher",
        metavar="MODEL[@WEIGHTS]",
        help="such as torchvision:resnet50, torchvision:resnet50@FILE.pth, timm:NAME, "
        "FILE.py:CALLABLE@FILE.pth, or a teacher.safetensors written here (default: by the size "
        "of the images torchvision:resnet50 with published weights, or resnet32x4)",
    )
    add(
        "--student",
        metavar="MODEL",
        help="(default: resnet8x4 or torchvision:resnet18; with a budget, the largest of a list "
        "that fits)",
    )
    add(
        "--budget-mb",
        type=_positive,
        metavar="MB",
        help="most megabytes of the student's float32 file; its int8 file has about a quarter",
    )
    add("--image-size", type=int, metavar="PIXELS", help="(default: by the size of the images)")
    add("--list", action="store_true", help="list the recipes that come with the package")
    add("--recipe", metavar="NAME", help="copy one of those")
    return parser


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not number > 0:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got '{text}'")
    return number


def _command(options: argparse.Namespace) -> int:
    if options.list:
        for name, path in packaged_recipes().items():
            console.print(f"{name:<34} {_first_line(path)}", soft_wrap=True)
        return 0
    if options.recipe is not None:
        return _copy(options.recipe, options.out)
    _ask(options)
    out: Path = options.out or Path(f"{Path(options.images).resolve().name}.yaml")
    _refuse_existing(out)
    from compress.cli.first_recipe import FirstRecipe  # imports torch

    recipe = FirstRecipe.of(
        images=options.images,
        teacher=options.teacher or None,
        student=options.student,
        budget_mb=options.budget_mb,
        image_size=options.image_size,
    )
    _write(out, recipe.text(out.name))
    for line in recipe.remarks:
        console.print(line, soft_wrap=True)
    console.print(f"{out} is written. Next: compress check {out}", soft_wrap=True)
    return 0


def _ask(options: argparse.Namespace) -> None:
    """Ask for what was not given, at a terminal; without one only the images must be given."""
    if options.images is not None:
        return
    if not sys.stdin.isatty():
        raise UserError("no images given; say --images FOLDER, or --list for complete recipes")
    for key, question in _QUESTIONS.items():
        if getattr(options, key) is None:
            answer = input(f"{question}: ").strip()
            if key == "budget_mb":
                options.budget_mb = _budget(answer)
            else:
                setattr(options, key, answer or None)
    if options.images is None:
        raise UserError("no images given")


def _budget(answer: str) -> float | None:
    try:
        return _positive(answer) if answer else None
    except argparse.ArgumentTypeError as error:
        raise UserError(f"megabytes: {error}") from None


def _copy(name: str, out: Path | None) -> int:
    recipes = packaged_recipes()
    if name not in recipes:
        raise UserError(
            f"no recipe '{name}' comes with the package; `compress init --list` names all"
            f"{nearest(name, recipes)}"
        )
    target = out or Path(Path(name).name).with_suffix(".yaml")
    _refuse_existing(target)
    text, code = _with_its_code(recipes[name], target.parent)
    for file in code.values():
        _refuse_existing(file)
    target.parent.mkdir(parents=True, exist_ok=True)
    for source, file in code.items():
        shutil.copyfile(source, file)
    _write(target, text)
    then = "sweep" if name.startswith("tables/") else "check"
    console.print(f"{target} is written. Next: compress {then} {target}", soft_wrap=True)
    return 0


def _with_its_code(recipe: Path, folder: Path) -> tuple[str, dict[Path, Path]]:
    """A recipe whose own code lies in `folder`; and each file of it, by where it comes from."""
    text = recipe.read_text(encoding="utf-8")
    code = {}
    for named in sorted(set(re.findall(r"pipelines/(\w+\.py)", text))):
        source = recipe.parent / named
        if source.is_file():
            code[source] = folder / named
            text = text.replace(f"pipelines/{named}", (folder / named).as_posix())
    return text, code


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise UserError(f"'{out}' is there already; give another name: compress init OTHER.yaml")


def _write(out: Path, text: str) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("x", encoding="utf-8") as file:
        file.write(text)


def _first_line(path: Path) -> str:
    """The first line of a recipe's header."""
    with path.open(encoding="utf-8") as file:
        return file.readline().lstrip("# ").strip()
