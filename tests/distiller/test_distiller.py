"""Training with networks and loaders of one's own: the loop of a recipe, and one of one's own."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from compress import pipeline
from compress.data import open_data
from compress.distiller import Distiller, Indexed
from compress.errors import UserError
from compress.methods import METHODS, LossWeights
from compress.model_files import load_student
from compress.models import build
from compress.seeding import generator
from compress.storage.files import read_tensors
from tests.distiller.making import (
    CLASSES,
    PREPROCESSING,
    SHAPE,
    Pictures,
    Small,
    distiller,
    loader,
    same,
    student,
    teacher,
)
from tests.quick import quick_commands


class _Digits(Dataset[Any]):
    def __init__(self, images: Any) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.images.pixels[index], self.images.labels[index]


class _RecipeOrder(Sampler[list[int]]):
    """The batches of a recipe: a permutation of the seed and the epoch."""

    def __init__(self, count: int, batch_size: int) -> None:
        self.count, self.batch_size, self.epoch = count, batch_size, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order = torch.randperm(self.count, generator=generator(0, "order", self.epoch))
        return iter([part.tolist() for part in order.split(self.batch_size)])


def test_fit_learns_bit_for_bit_what_a_recipe_learns(tmp_path: Path) -> None:
    data = {"name": "digits", "classes": 3, "image_size": 8, "train_images": 36, "test_images": 30}
    train = {"epochs": 2, "lr": 0.05, "batch_size": 10}
    recipe = {
        "data": {**data, "augment": "none"},
        "teacher": {"model": "resnet8", "train": {**train, "epochs": 6}},
        "student": {"model": "resnet8"},
        "distill": {
            "method": "simkd",
            "train": train,
            "compare": [{"name": "crd", "negatives": 8}],
        },
    }
    path, run = tmp_path / "recipe.yaml", tmp_path / "run"
    path.write_text(yaml.safe_dump(recipe))
    with quick_commands():
        assert pipeline.main([str(path), "--out", str(run), "--until", "distill"]) == 0
    digits = open_data(data, seed=0)
    order = _RecipeOrder(36, 10)
    for name, arguments in (("simkd", {}), ("crd", {"negatives": 8})):
        own = Distiller(
            build("resnet8", num_classes=3, seed=0),
            load_student(run / "teacher/0", "teacher").network,
            name,
            classes=3,
            preprocessing=digits.preprocessing,
            arguments=arguments,
        )
        train_loader = DataLoader(Indexed(_Digits(digits.train)), batch_sampler=order)
        history = own.fit(train_loader, epochs=2, lr=0.05, directory=tmp_path / name)
        assert [row["epoch"] for row in history] == [1, 2]
        expected, _ = read_tensors(run / f"distill/{name}/student.safetensors")
        assert same(own.deploy().state_dict(), expected)


@pytest.mark.parametrize("with_generator", [False, True])
def test_a_fit_that_was_interrupted_goes_on_bit_for_bit(
    tmp_path: Path, with_generator: bool
) -> None:
    def train_loader() -> DataLoader[Any]:
        own = torch.Generator().manual_seed(3) if with_generator else None
        data = Indexed(Pictures(augment=True))
        return DataLoader(data, 8, shuffle=True, generator=own)

    def fit(learner: nn.Module, folder: str, given: DataLoader[Any]) -> nn.Module:
        own = distiller("crd", student=learner, arguments={"negatives": 6})
        own.fit(given, epochs=3, directory=tmp_path / folder)
        return own.deploy()

    whole = fit(student(), "whole", train_loader())
    stopped = train_loader()
    data, seen = stopped.dataset, []

    class Stop(Exception):
        pass

    def get(index: int) -> Any:
        seen.append(index)
        if len(seen) > 24 + 8 + 24 + 10:  # labels, probe, an epoch, and something of the second
            raise Stop
        return data[index]

    broken = copy.copy(stopped.dataset)
    broken.__class__ = type("Broken", (Indexed,), {"__getitem__": lambda _, index: get(index)})
    halting = DataLoader(broken, 8, shuffle=True, generator=stopped.generator)
    with pytest.raises(Stop):
        fit(student(), "halves", halting)
    torch.manual_seed(99)  # another process
    again = fit(student(seed=7), "halves", train_loader())  # its own weights are the checkpoint's
    assert same(again.state_dict(), whole.state_dict())


def test_a_fit_that_is_done_is_loaded_and_another_one_is_put_aside(tmp_path: Path) -> None:
    first = distiller()
    history = first.fit(loader(), epochs=1, directory=tmp_path)
    again = distiller(student=student(seed=5))
    assert again.fit(loader(), epochs=1, directory=tmp_path) == history
    assert same(again.deploy().state_dict(), first.deploy().state_dict())
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    distiller(teacher=teacher(seed=8)).fit(loader(), epochs=1, directory=tmp_path)
    kept = [p.read_bytes() for p in tmp_path.rglob("*.safetensors") if p.parent != tmp_path]
    assert before in kept


def test_the_teacher_is_frozen_in_eval_mode_and_unchanged(tmp_path: Path) -> None:
    known = teacher().train()
    before = {k: v.clone() for k, v in known.state_dict().items()}
    own = distiller("simkd", teacher=known)
    own.fit(loader(), epochs=1, directory=tmp_path, test_loader=loader())
    own.prepare(loader(), epochs=1)
    own.losses(*next(iter(loader())))
    assert same(known.state_dict(), before)
    assert not any(module.training for module in known.modules())
    assert not any(p.requires_grad for p in known.parameters())


def test_a_loop_of_ones_own_takes_the_steps_of_fit(tmp_path: Path) -> None:
    settings = {"weight_decay": 0.0, "nesterov": False, "schedule": {"name": "constant"}}
    arguments = {"negatives": 6}
    data = Indexed(Pictures())
    fitted = distiller("crd", arguments=arguments)
    fitted.fit(DataLoader(data, 8), epochs=2, lr=0.05, directory=tmp_path, **settings)
    own = distiller("crd", arguments=arguments)
    own.prepare(DataLoader(data, 8), epochs=2)
    optimizer = torch.optim.SGD(own.parameters(), lr=0.05, momentum=0.9)
    for _ in range(2):
        for batch in DataLoader(data, 8):
            loss, terms = own.losses(*batch)
            assert loss.item() == pytest.approx(sum(term.item() for term in terms.values()))
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            own.after_step()
        own.evaluate(loader())  # puts the student in eval mode, which the next loss ends
    assert same(own.module.state_dict(), fitted.module.state_dict())


def test_banks_move_after_the_step_alone() -> None:
    own = distiller("crd", arguments={"negatives": 6})
    data = DataLoader(Indexed(Pictures()), 8)
    own.prepare(data, epochs=1)
    banks = {k: v.clone() for k, v in own.module.method.named_buffers()}
    own.losses(*next(iter(data)))
    assert all(torch.equal(v, banks[k]) for k, v in own.module.method.named_buffers())
    own.after_step()
    assert not all(torch.equal(v, banks[k]) for k, v in own.module.method.named_buffers())


# Methods that need something special of batches, trainings or teachers, and some that do not.
NEEDS = {
    "aekd": {}, "cocord": {"queue_size": 16}, "crcd": {"negatives": 6}, "dcd": {}, "dist": {},
    "distpro": {"search_epochs": 1}, "dkd": {}, "ft": {"paraphraser_epochs": 1}, "mlkd": {},
    "norm": {}, "ofd": {}, "semckd": {}, "simkd_sequential": {}, "sskd": {"head_epochs": 1},
}  # fmt: skip


@pytest.mark.parametrize("name", NEEDS)
def test_methods_of_every_kind_learn(tmp_path: Path, name: str) -> None:
    known = METHODS[name].with_defaults({})
    arguments = {key: value for key, value in NEEDS[name].items() if key in known}
    own = distiller(
        name, teacher=[teacher(), teacher(3)] if name == "aekd" else None, arguments=arguments
    )
    views = len(METHODS[name].needs(arguments).views)
    data = Indexed(Pictures(augment=True), views=views)
    history = own.fit(DataLoader(data, 8, shuffle=True), epochs=1, directory=tmp_path)
    assert history[0]["loss"] > 0
    assert own.deploy()(torch.zeros(2, *SHAPE)).shape == (2, CLASSES)


@pytest.mark.parametrize("name", ["crd", "crcd", "norm_crd", "wcord", "distpro"])
def test_a_method_that_knows_each_image_says_what_to_give(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"give \(image, label, index\) .*Indexed\(dataset\)"):
        distiller(name).fit(loader(), epochs=1, directory=tmp_path)


@pytest.mark.parametrize("name", ["sskd", "dlkd", "mlkd", "cocord"])
def test_a_method_of_several_views_says_what_to_give(tmp_path: Path, name: str) -> None:
    views = len(METHODS[name].needs({}).views)
    with pytest.raises(UserError, match=rf"a tuple of {views} images .*views={views}"):
        distiller(name).fit(loader(), epochs=1, directory=tmp_path)


def test_a_loop_of_ones_own_is_refused_to_methods_that_need_more() -> None:
    data = DataLoader(Indexed(Pictures(), views=4), 8)
    with pytest.raises(UserError, match="sskd trains in several phases; use fit"):
        distiller("sskd").prepare(data, epochs=1)
    with pytest.raises(UserError, match="first"):
        distiller().losses(*next(iter(loader())))
    with pytest.raises(UserError, match="first"):
        distiller().deploy()


class Changes(Small):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images.mul_(2))


class Hidden(Small):
    """A list is no chain: its modules may be called in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.several = nn.ModuleList(self.layers)
        del self.layers

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        for layer in self.several:
            images = layer(images)
        logits: torch.Tensor = self.classifier(images.mean((2, 3)))
        return logits


class OneSize(Small):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images.flatten(1).view(-1, 3, 32, 32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"student": student(classes=7)}, "5 classes, but the student gives 7 logits"),
        ({"teacher": teacher(classes=7)}, "5 classes, but the teacher gives 7 logits"),
        ({"method": "simkid"}, "unknown method 'simkid'.*did you mean 'simkd'"),
        ({"method": "kd", "arguments": {"temprature": 4}}, "did you mean 'temperature'"),
        ({"protocol": "crb"}, "unknown protocol 'crb'; known: crd"),
        ({"classes": 1}, "classes: 1; expected two or more"),
        ({"architecture": "resnet8"}, "builds another network than the student"),
        ({"method": "ifvd"}, "segment"),
        ({"preprocessing": 32}, r"preprocessing is a int; expected .*Preprocessing\(image_size"),
        ({"student": Hidden()}, r"at: .* the student has none; .* student_taps=\{\"stages\""),
        ({"student": Changes()}, "changes its input in place"),
        ({"student": OneSize()}, r"the student cannot run on images \(3, 8, 8\)"),
        ({"student_taps": {"stage": ["layers.0"]}}, "stage.*did you mean 'stages'"),
        ({"teacher_taps": {"stages": ["layers.9"]}}, "layers.9"),
    ],
)
def test_what_does_not_fit_is_said_at_once(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        distiller(**options).prepare(loader(), epochs=1)


def test_settings_are_those_of_a_recipe(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"momentun.*did you mean 'momentum'"):
        distiller().fit(loader(), epochs=1, directory=tmp_path, momentun=0.8)
    with pytest.raises(UserError, match="lr"):
        distiller().fit(loader(), epochs=1, lr=-1, directory=tmp_path)
    assert not [*tmp_path.iterdir()]


def test_weights_and_a_second_method_on_the_same_student(tmp_path: Path) -> None:
    learner = student()
    alone = distiller("at", student=learner, weights=LossWeights(ce=0, kd=0, method=100))
    row = alone.fit(loader(), epochs=1, directory=tmp_path / "first")[0]
    assert [*row["terms"]] == ["at"]
    second = distiller("kd", student=learner)
    second.prepare(loader(), epochs=1)
    assert len(second.parameters()) == len([*learner.parameters()])  # what "at" froze learns again


def test_uint8_is_normalised_as_floats_are_expected_to_be() -> None:
    own = distiller()
    own.prepare(loader(), epochs=1)
    with torch.no_grad():
        first, second = (own.losses(*next(iter(loader(raw=raw)))).total for raw in (False, True))
    assert torch.equal(first, second)
    assert own.evaluate(loader()) == own.evaluate(loader(raw=True))


def test_taps_are_found_or_given() -> None:
    found = distiller()
    paths = ["layers.0", "layers.1"]
    given = distiller(student_taps={"stages": paths}, teacher_taps={"stages": paths})
    for own, count in ((found, 3), (given, 2)):
        own.prepare(loader(), epochs=1)
        assert len(own.module.method.context.student.stages) == count
        assert len(own.module.method.context.teachers[0].taps.stages) == count


def test_a_teacher_at_chance_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Same(Small):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return super().forward(images) * 0

    own = distiller("kd", teacher=Same())
    own.fit(loader(), epochs=1, directory=tmp_path, test_loader=loader(40))
    assert "Same, teacher: 20.00 %, it is at chance" in capsys.readouterr().out


def test_accuracy_is_that_of_the_labels() -> None:
    class Colours(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            images = PREPROCESSING.normalise(Pictures().pixels)[:, None] - images[None]
            nearest = images.flatten(2).norm(dim=2).argmin(0)
            return nn.functional.one_hot(Pictures().labels[nearest], CLASSES).float()

    assert distiller().evaluate(loader(), Colours()) == {"top1_percent": 100.0}
