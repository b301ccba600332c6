"""Every training stands for itself: what is trained anew, kept, put aside and taken back."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from compress.engine import TrainSettings
from compress.errors import UserError
from compress.model_files import origins_of
from compress.run.directory import RunDirectory
from compress.storage.files import read_json, read_tensors, write_json
from eval.transfer.context import Start, TransferContext, compare_inits
from tests.eval.runs import write_run


class Trainings:
    """Counts what is trained; a result is a function of the weights and the seed alone."""

    def __init__(self) -> None:
        self.done: list[tuple[str, int]] = []

    def __call__(self, start: Start) -> dict[str, float]:
        self.done.append((start.init, start.seed))
        weights = sum(float(p.detach().sum()) for p in start.encoder.parameters())
        return {"top1_percent": weights + start.seed}

    def of(self, context: TransferContext) -> tuple[list[tuple[str, int]], list[dict[str, Any]]]:
        """What was trained for a comparison, and its rows."""
        self.done = []
        rows = compare_inits(context, self)
        return self.done, rows


@pytest.fixture
def trainings() -> Trainings:
    return Trainings()


@pytest.fixture
def asked(tmp_path: Path) -> TransferContext:
    return TransferContext(
        run=RunDirectory(tmp_path / "out", "test"),
        stage="transfer/crops",
        students=origins_of(write_run(tmp_path / "run")),
        main="kd",
        inits=("distilled", "scratch"),
        data={"name": "none"},
        settings=TrainSettings(epochs=1, lr=0.1),
        device=torch.device("cpu"),
        fields={"seed": 0, "lr": 0.1},
    )


def elsewhere(context: TransferContext, folder: Path) -> TransferContext:
    """The same comparison in a directory where nothing was done."""
    return replace(context, run=RunDirectory(folder, "test"))


def shelved(context: TransferContext) -> list[str]:
    return sorted(path.name for path in (context.run.folder / "superseded").glob("*"))


def changed(description: Path, **values: Any) -> None:
    write_json(description, read_json(description) | values)


def test_only_what_is_new_is_trained(
    asked: TransferContext, trainings: Trainings, tmp_path: Path
) -> None:
    """Seeds and inits come and go; the rows are those of a directory where only they were done."""
    steps: list[tuple[dict[str, Any], list[tuple[str, int]]]] = [
        ({}, [("distilled", 0), ("scratch", 0)]),
        ({}, []),
        ({"seeds": (0, 1)}, [("distilled", 1), ("scratch", 1)]),
        ({"inits": ("alone", "distilled", "scratch")}, [("alone", 0)]),
        ({"inits": ("scratch",), "seeds": (1,)}, []),
        ({"inits": ("alone", "scratch"), "seeds": (0, 1)}, [("alone", 1)]),
    ]
    for number, (changes, expected) in enumerate(steps):
        context = replace(asked, **changes)
        done, rows = trainings.of(context)
        assert done == expected
        assert rows == trainings.of(elsewhere(context, tmp_path / str(number)))[1]
    assert not shelved(asked)


def test_origins_of_one_label_do_not_share_a_training(
    asked: TransferContext, trainings: Trainings, tmp_path: Path
) -> None:
    """Scratch, which takes the architecture alone, is theirs in common."""
    first = trainings.of(asked)[1]
    other = replace(asked, students={"kd": asked.students["none"]})
    done, rows = trainings.of(other)
    assert done == [("distilled", 0)]
    assert rows == trainings.of(elsewhere(other, tmp_path / "alone"))[1]
    assert rows[0]["metrics"] != first[0]["metrics"] and rows[1] == first[1]
    assert shelved(asked) == ["001-transfer-crops-distilled-seed-0"]
    assert trainings.of(asked) == ([], first)
    assert trainings.of(other) == ([], rows)


def test_scratch_depends_on_the_form_of_its_origin(
    asked: TransferContext, trainings: Trainings
) -> None:
    trainings.of(asked)
    description = Path(asked.students["kd"]) / "student.json"
    changed(description, metrics={"top1_percent": 1.0}, versions={})
    assert trainings.of(asked)[0] == []
    changed(description, preprocessing=read_json(description)["preprocessing"] | {"std": [0.2] * 3})
    assert trainings.of(asked)[0] == [("distilled", 0), ("scratch", 0)]
    changed(description, num_classes=4, class_names=["a", "b", "c", "d"])
    assert ("scratch", 0) in trainings.of(replace(asked, inits=("scratch",)))[0]


def test_what_was_put_aside_comes_back_only_where_it_fits(
    asked: TransferContext, trainings: Trainings
) -> None:
    """Neither to another stage's trainings nor where the trial's seed is another."""
    trainings.of(asked)
    other = replace(asked, students={"kd": asked.students["none"]})
    trainings.of(other)
    assert len(shelved(asked)) == 1
    for number, field in enumerate(("lr", "seed"), 1):
        asked.run.supersede(asked.stage)
        changes = replace(asked, fields={**asked.fields, field: 7})
        assert len(trainings.of(changes)[0]) == 2
        assert len(shelved(asked)) == 1 + number
    asked.run.supersede(asked.stage)
    assert trainings.of(asked)[0] == [("scratch", 0)]


def test_weights_that_cannot_be_loaded_are_refused_before_anything_is_trained(
    asked: TransferContext, trainings: Trainings
) -> None:
    folder = Path(asked.students["none"])
    weights, _ = read_tensors(folder / "student.safetensors")
    name = next(key for key, value in weights.items() if value.is_floating_point())
    save_file({**weights, name: weights[name] * torch.nan}, folder / "student.safetensors")
    with pytest.raises(UserError, match="finite"):
        trainings.of(replace(asked, inits=("distilled", "scratch", "alone")))
    assert not trainings.done


def test_fresh_takes_nothing_back(asked: TransferContext, trainings: Trainings) -> None:
    trainings.of(asked)
    trainings.of(replace(asked, students={"kd": asked.students["none"]}))
    asked.run.supersede(asked.stage)
    assert len(trainings.of(replace(asked, fresh=True))[0]) == 2


def test_an_interrupted_training_goes_on_in_its_folder(
    asked: TransferContext, trainings: Trainings
) -> None:
    """Even if another origin had its place in between."""

    class Killed(Exception):
        pass

    def stopped(start: Start) -> dict[str, float]:
        (start.folder / "checkpoint").write_text(start.init)
        raise Killed

    def resumed(start: Start) -> dict[str, float]:
        assert (start.folder / "checkpoint").is_file() == (start.init == "distilled")
        return trainings(start)

    with pytest.raises(Killed):
        compare_inits(asked, stopped)
    trainings.of(replace(asked, students={"kd": asked.students["none"]}, inits=("distilled",)))
    compare_inits(asked, resumed)
    assert trainings.done == [("distilled", 0), ("distilled", 0), ("scratch", 0)]


def test_a_folder_that_nobody_knows_is_put_aside(
    asked: TransferContext, trainings: Trainings
) -> None:
    folder = asked.folder / "distilled" / "seed-0"
    folder.mkdir(parents=True)
    write_json(folder / "outcome.json", {"seed": 0, "metrics": {}, "matched_percent": 100.0})
    assert len(trainings.of(asked)[0]) == 2
    assert shelved(asked) == ["001-transfer-crops-distilled-seed-0"]
