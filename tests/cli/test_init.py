"""`compress init`: recipes that are in order, for folders of images and budgets of all kinds."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from compress import models
from compress.cli import main
from compress.cli.init import main as init
from compress.pipeline import STAGES
from compress.recipe.files import read_yaml
from compress.recipe.schema import Recipe
from compress.run.checks import check_values
from compress.run.probe import probe

Photos = Callable[..., Path]


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Photos:
    """Writes a folder of images below the current folder, which is empty otherwise."""
    monkeypatch.chdir(tmp_path)

    def write(side: int = 32, name: str = "photos") -> Path:
        for label in ("cat", "dog"):
            (folder := Path(name, label)).mkdir(parents=True)
            for i in range(10):
                Image.new("RGB", (side + 10, side), (10 * i, 0, 0)).save(folder / f"{i}.png")
        return Path(name)

    return write


def recipe_in(path: Path) -> Recipe:
    """The recipe of a file, which is in order and whose networks and methods fit."""
    recipe, problems = check_values(read_yaml(path), STAGES)
    assert recipe is not None and not problems, problems
    assert probe(recipe)[1] == []
    return recipe


def test_small_images_get_small_networks(photos: Photos) -> None:
    photos(side=32)
    assert main(["init", "--images", "photos"]) == 0
    recipe = recipe_in(Path("photos.yaml"))
    assert recipe.data.image_size == 32
    assert recipe.data.arguments["root"] == "photos"
    assert recipe.teacher[0].model is not None and recipe.teacher[0].model.name == "resnet32x4"
    assert recipe.student.model.name == "resnet8x4"
    assert [*recipe.methods] == ["simkd", "none", "kd"]
    assert recipe.export is not None and recipe.account is not None


def test_photos_get_published_networks(photos: Photos) -> None:
    photos(side=300)
    assert init(["mine.yaml", "--images", "photos"]) == 0
    recipe, problems = check_values(read_yaml(Path("mine.yaml")), STAGES)
    assert recipe is not None and not problems
    assert recipe.data.image_size == (224 if torch.cuda.is_available() else 128)
    teacher = recipe.teacher[0]
    assert teacher.model is not None and teacher.model.name == "torchvision:resnet50"
    assert teacher.weights == recipe.student.weights == "DEFAULT"
    assert recipe.student.model.name == "torchvision:resnet18"


@pytest.mark.parametrize(("budget", "expected"), [(0.4, "resnet8"), (1.5, "resnet20"), (50, None)])
def test_what_ships_fits_the_budget(photos: Photos, budget: float, expected: str | None) -> None:
    photos()
    assert init(["--images", "photos", "--budget-mb", str(budget)]) == 0
    recipe = recipe_in(Path("photos.yaml"))
    shapes, _ = probe(recipe, num_classes=2)
    assert shapes is not None
    student = models.build(recipe.student.model.name, num_classes=2)
    parameters = sum(p.numel() for p in student.parameters())
    parameters += shapes.added[recipe.distill.method.name]
    assert 4 * parameters <= budget * 1e6
    assert expected is None or recipe.student.model.name == expected


def test_a_budget_that_nothing_fits_says_what_the_smallest_takes(
    photos: Photos, capsys: pytest.CaptureFixture[str]
) -> None:
    photos()
    assert init(["--images", "photos", "--budget-mb", "0.01"]) == 2
    said = capsys.readouterr().err
    assert "the smallest is resnet8 with 0.3 MB" in said
    assert not [*Path().glob("*.yaml")]


def test_a_teacher_from_a_file(photos: Photos, tmp_path: Path) -> None:
    photos()
    torch.save(models.build("resnet14", num_classes=2).state_dict(), tmp_path / "my net.pth")
    teacher = f"resnet14@{tmp_path / 'my net.pth'}"
    assert init(["--images", "photos", "--teacher", teacher, "--student", "resnet8"]) == 0
    recipe = recipe_in(Path("photos.yaml"))
    assert recipe.teacher[0].weights == str(tmp_path / "my net.pth")
    assert recipe.teacher[0].model is not None and recipe.teacher[0].model.name == "resnet14"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--images", "nowhere"], "folder 'nowhere' not found"),
        (["--images", "photos", "--teacher", "resnet9"], "unknown model 'resnet9'"),
        (["--images", "photos", "--student", "torchvision:resnet19"], "no classification"),
        ([], "no images given; say --images FOLDER"),
        (["--recipe", "quickstar"], "did you mean 'quickstart'?"),
    ],
)
def test_mistakes_are_sentences(
    photos: Photos, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    photos()
    assert init(options) == 2
    assert words in capsys.readouterr().err
    assert not [*Path().glob("*.yaml")]


def test_nothing_is_overwritten(photos: Photos, capsys: pytest.CaptureFixture[str]) -> None:
    photos()
    Path("photos.yaml").write_text("mine")
    Path("quickstart.yaml").write_text("mine")
    assert init(["--images", "photos"]) == init(["--recipe", "quickstart"]) == 2
    assert "'photos.yaml' is there already" in capsys.readouterr().err
    assert Path("photos.yaml").read_text() == Path("quickstart.yaml").read_text() == "mine"


def test_somebody_at_a_terminal_is_asked(photos: Photos, monkeypatch: pytest.MonkeyPatch) -> None:
    photos(name="my 'best' photos")
    answers = io.StringIO("my 'best' photos\nresnet20\n1.5\n")
    monkeypatch.setattr(answers, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdin", answers)
    assert init(["r.yaml"]) == 0
    recipe = recipe_in(Path("r.yaml"))
    assert recipe.data.arguments["root"] == "my 'best' photos"
    assert recipe.teacher[0].model is not None and recipe.teacher[0].model.name == "resnet20"


def test_the_recipes_of_the_package_are_listed_and_copied(
    photos: Photos, capsys: pytest.CaptureFixture[str]
) -> None:
    assert init(["--list"]) == 0
    listed = capsys.readouterr().out
    assert "quickstart" in listed and "simkd/resnet32x4-vgg8" in listed
    assert init(["--recipe", "quickstart"]) == 0
    values: Any = read_yaml(Path("quickstart.yaml"))
    assert values["student"]["model"] == "resnet8"


def test_a_recipe_with_code_comes_with_it(photos: Photos) -> None:
    assert init(["--recipe", "own_network", "mine/own.yaml"]) == 0
    values: Any = read_yaml(Path("mine/own.yaml"))
    assert values["student"]["model"]["name"] == "mine/own_network.py:plain_cnn"
    assert Path("mine/own_network.py").is_file()
