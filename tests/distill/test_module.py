"""The distill stage's own decisions: weights of the terms, and the images a term is measured on."""

import math
from pathlib import Path

import pytest
import torch

from compress.distill import Distillation
from compress.errors import UserError
from compress.methods import METHODS, LossWeights, NetworkForward
from compress.methods.contract import StoredOutputs
from compress.recipe import Recipe
from compress.stages import dataset_of, distill
from compress.stages.job import Job
from compress.taps import Taps
from compress.tasks import Classification
from tests.methods import building


def _recipe(method: object, protocol: str = "crd", **more: object) -> Recipe:
    return Recipe.model_validate(
        {
            "data": {"name": "digits", "test_images": 100},
            "teacher": {"model": "resnet14", "train": {"epochs": 1, "lr": 0.1}},
            "student": {"model": "resnet8"},
            "distill": {
                "method": method,
                "protocol": protocol,
                "train": {"epochs": 1, "lr": 0.1},
                **more,
            },
        }
    )


@pytest.mark.parametrize(
    ("method", "protocol", "expected"),
    [
        ("crd", "crd", LossWeights(1, 0, 0.8)),
        ("crd", "simkd", LossWeights(1, 1, 0.8)),
        ({"name": "crd", "weights": {"kd": 1}}, "crd", LossWeights(1, 1, 0.8)),
        ({"name": "at", "weights": {"method": 500}}, "simkd", LossWeights(1, 1, 500)),
        ({"name": "ab", "weights": {"ce": 2}}, "crd", LossWeights(2, 0, 0)),
        ("kd", "crd", LossWeights(0.1, 0, 0.9)),
        ("simkd", "crd", LossWeights(0, 0, 1)),
    ],
)
def test_weights_change_only_what_they_name(
    method: object, protocol: str, expected: LossWeights
) -> None:
    recipe = _recipe(method, protocol)
    assert distill.terms_for(recipe.distill.method, recipe) == expected


def test_the_recipes_weights_are_those_of_the_method_that_ships() -> None:
    recipe = _recipe("at", compare=["at"], weights={"kd": 3})
    assert distill.terms_for(recipe.distill.method, recipe).kd == 3
    assert distill.terms_for(recipe.distill.compare[0], recipe).kd == 0


def test_a_term_is_measured_on_images_of_every_class() -> None:
    recipe = _recipe("kd")
    data = dataset_of(recipe)
    job = Job(
        name="distill/kd",
        folder=Path(),
        run_folder=Path(),
        recipe=recipe,
        arguments={},
        device=building.CPU,
        workers=0,
        recipe_fingerprint="",
    )
    modules = {n: building.distillation(METHODS[n]) for n in ("kd", "crd")}
    kd = modules["kd"]
    targets = [StoredOutputs(torch.zeros(len(data.train), 10))]
    modules["stored"] = Distillation(
        kd.student, targets, kd.method, kd.weights, kd.task, kd_temperature=4
    )
    for name, module in modules.items():
        batch = distill._fixed_batch(data, module, 64, job)
        assert batch.images[0].shape[0] == 64
        assert set(batch.labels.tolist()) == set(range(10))
        assert torch.equal(data.train.labels[batch.index], batch.labels)
        # What remembers training images is measured on these, the others on test images.
        images = data.test if name == "kd" else data.train
        seen = {
            i.numpy().tobytes()
            for i in data.preprocessing.normalise(images.fetch(torch.arange(len(images))))
        }
        assert all(image.numpy().tobytes() in seen for image in batch.images[0])
        if name != "kd":
            own = data.preprocessing.normalise(data.train.fetch(batch.index))
            assert torch.equal(own, batch.images[0])


def test_the_images_that_a_term_is_measured_on_are_turned_as_in_training(tmp_path: Path) -> None:
    recipe = _recipe("dlkd")
    job = Job(
        name="distill/dlkd", folder=tmp_path, run_folder=tmp_path, arguments={},
        device=building.CPU, workers=0, recipe=recipe, recipe_fingerprint="",
    )  # fmt: skip
    module = building.distillation(METHODS["dlkd"])
    plain, *turned = distill._fixed_batch(dataset_of(recipe), module, 4, job).images
    for quarters, view in enumerate(turned, 1):
        assert torch.equal(view, plain.rot90(quarters, (2, 3)))


@pytest.mark.parametrize("name", ["kd", "simkd", "crd", "semckd", "ab", "cocord", "dlkd"])
def test_measuring_moves_no_state(name: str) -> None:
    module = building.distillation(METHODS[name])
    batches = building.batches(module.method)
    batch = next(batches.epoch(0))
    before = {k: v.clone() for k, v in module.state_dict().items()}
    learning = [p.requires_grad for p in module.parameters()]
    terms = module.measure(batch)
    assert terms["gradient_to_ce"] > 0
    assert torch.isfinite(torch.tensor([*terms.values()])).all()
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert [p.requires_grad for p in module.parameters()] == learning
    assert all(p.grad is None for p in module.parameters())
    module.after_step()
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_hard_loss_is_in_float32_or_wider(dtype: torch.dtype) -> None:
    logits, labels = torch.randn(6, 5, dtype=torch.float64).to(dtype), torch.arange(6) % 5
    loss = Classification().loss(logits, labels)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    powers = [[math.exp(z) for z in row] for row in logits.tolist()]
    terms = [-math.log(row[label] / sum(row)) for row, label in zip(powers, labels, strict=True)]
    expected = sum(terms) / len(terms)
    assert float(loss) == pytest.approx(expected, rel=1e-14 if dtype == torch.float64 else 1e-6)


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_nobody_changes_the_images_that_others_read(role: str) -> None:
    module = building.distillation(METHODS["kd"])
    batch = building.first_batch(module)
    module(batch)
    network = module._teachers[0] if role == "teacher" else module._tapped

    def overwriting(images: torch.Tensor) -> Taps:
        return network(images.mul_(0.5))

    if role == "teacher":
        module.begin_phase(None, batch, teachers=[NetworkForward(overwriting)])
    else:
        module.begin_phase(None, batch, student=overwriting)
    with pytest.raises(UserError, match=f"the {role} changes its input in place"):
        module(batch)


def test_the_student_alone_has_no_term_to_measure() -> None:
    module = building.distillation(METHODS["none"])
    assert module.measure(building.first_batch(module)) == {}
