"""What the memory of a training is said to be, per method; measuring it changes nothing."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from compress.data import Batch
from compress.distill import Distillation
from compress.engine import TrainSettings
from compress.engine.optimization import constant
from compress.methods import METHODS, LossWeights
from compress.stages.distill import _Distilling, step_bytes
from compress.stages.job import Job
from tests.methods import building


def _module(name: str, weights: LossWeights | None = None) -> tuple[Distillation, Batch]:
    module = building.distillation(METHODS[name], weights=weights)
    batch = building.first_batch(module)
    module.begin_phase(None, batch)
    return module, batch


@pytest.mark.parametrize("name", ["none", "kd", "simkd", "crd", "semckd", "ab"])
def test_measuring_moves_no_state(name: str) -> None:
    module, batch = _module(name)
    before = {k: v.clone() for k, v in module.state_dict().items()}
    learning = [p.requires_grad for p in module.parameters()]
    expected = module(batch)
    module.load_state_dict(before)
    assert step_bytes(module, batch) == step_bytes(module, batch) > 0
    module.after_step()
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())
    assert [p.requires_grad for p in module.parameters()] == learning
    assert all(p.grad is None for p in module.parameters())
    terms = module(batch)
    assert all(torch.equal(terms[key], value) for key, value in expected.items())


def test_a_step_takes_what_its_images_and_its_method_need() -> None:
    module, batch = _module("none")
    alone, half = step_bytes(module, batch), step_bytes(module, batch.split(2)[0])
    assert 0.45 * alone < half < 0.65 * alone
    # At least what the student keeps of each image: a map (16, 16, 16) around each convolution.
    assert alone > len(batch.labels) * 7 * 16 * 16 * 16 * 4
    frozen = sum(p.nbytes for p in module.student.parameters())
    assert alone > frozen  # a gradient for each parameter, in the end
    assert step_bytes(_module("nst")[0], batch) > alone


def test_it_is_that_of_the_plain_networks_whatever_shows_the_taps() -> None:
    module, batch = _module("kd")
    expected = step_bytes(module, batch)

    def refuse(*_: Any) -> Any:
        pytest.fail("a fast network was asked")

    module.begin_phase(None, batch, student=refuse, teachers=[refuse])
    assert step_bytes(module, batch) == expected
    with pytest.raises(pytest.fail.Exception, match="fast network"):
        module(batch)


def test_bytes_of_a_methods_own_state_by_hand() -> None:
    assert _module("kd")[0].method_bytes() == 0
    module, _ = _module("crd")
    # 24 training images, 128 numbers each, two banks, two normalisers; linear 64 and 256 -> 128.
    numbers = 2 * 24 * 128 + 2 + (64 + 1) * 128 + (256 + 1) * 128
    # What is kept of the labels to draw by class: integers per image twice, per class twice.
    indices = 2 * 24 + 2 * building.CLASSES
    assert module.method_bytes() == 4 * numbers + 8 * indices


def _stage(module: Distillation, batch: Batch, settings: TrainSettings) -> dict[str, int]:
    recipe = SimpleNamespace(seed=0)
    job = Job(
        name="distill/kd",
        folder=Path(),
        run_folder=Path(),
        recipe=recipe,  # type: ignore[arg-type]
        arguments={"trial": 0},
        device=building.CPU,
        workers=0,
        recipe_fingerprint="",
    )
    inputs: Any = SimpleNamespace(probe=batch)
    training = _Distilling(job, module, inputs, None, module.student)  # type: ignore[arg-type]
    training._measure_memory(settings)
    return training.memory


def test_the_stage_measures_the_step_that_it_will_take() -> None:
    module, batch = _module("kd")
    settings = TrainSettings(epochs=1, lr=0.1, batch_size=8, schedule=constant())
    generator = torch.get_rng_state()
    memory = _stage(module, batch, settings)
    assert torch.equal(torch.get_rng_state(), generator)
    assert memory == {"step_bytes": step_bytes(module, batch), "method_bytes": 0, "batch": 8}
    parts = _stage(module, batch, replace(settings, accumulate=4))
    assert parts["batch"] == 2 and parts["step_bytes"] < 0.5 * memory["step_bytes"]
    half = _stage(module, batch, replace(settings, precision="bfloat16"))
    assert half["step_bytes"] < 0.9 * memory["step_bytes"]
