"""MoCo v2: the loss, what follows slowly, what a resumed training continues with."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.data import Batch, ImageBatches
from compress.engine import TrainSettings, train
from compress.methods.blocks.key_queue import info_nce
from compress.models import build
from compress.self_supervised import MoCo
from tests.methods import building

WIDTH = 64


def _moco(**arguments: Any) -> MoCo:
    torch.manual_seed(0)
    encoder = build("resnet8", num_classes=0, seed=0)
    defaults = {"queue_size": 32, "embedding_width": 8, "momentum": 0.9}
    return MoCo(encoder, WIDTH, seed=0, **{**defaults, **arguments})


def _batches() -> ImageBatches:
    return ImageBatches(
        building.images(),
        building.PREPROCESSING,
        batch_size=8,
        augment=MoCo.augment,
        seed=0,
        device=building.CPU,
    )


def _batch() -> Batch:
    return next(_batches().epoch(0))


def _loss(queries: Tensor, keys: Tensor, queue: Tensor, temperature: float) -> float:
    """The formula, image by image, in Python's numbers."""
    total = 0.0
    for query, key in zip(queries.tolist(), keys.tolist(), strict=True):
        length = math.sqrt(sum(v * v for v in query))

        def score(other: list[float], q: list[float] = query, n: float = length) -> float:
            return sum(a * b for a, b in zip(q, other, strict=True)) / n / temperature

        everything = [math.exp(score(other)) for other in [key, *queue.tolist()]]
        total -= math.log(everything[0] / sum(everything))
    return total / len(queries)


def test_loss_is_the_formula() -> None:
    moco, batch = _moco(groups=1).double(), _batch()
    images = tuple(view.double() for view in batch.images)
    double = Batch(images, batch.view_ids, batch.labels, batch.index, 0, 0)
    moco.eval()
    with torch.no_grad():
        queries = moco.head(moco.network(images[0]))
        keys = nn.functional.normalize(moco.key_head(moco.key_network(images[1])))
        got = moco(double)["contrast"]
    expected = _loss(queries, keys, moco.queue.keys, moco.temperature)
    assert float(got) == pytest.approx(expected, rel=1e-6)  # keys are float32


def test_views_of_one_image_are_alike_before_those_of_others() -> None:
    rows = torch.eye(8)
    low = info_nce(rows[:1], rows[:1], rows[1:], temperature=0.2)
    high = info_nce(rows[:1], rows[1:2], torch.cat([rows[:1], rows[2:]]), temperature=0.2)
    assert float(low) < 0.1 < 4 < float(high)


def test_gradient_reaches_encoder_and_head_alone() -> None:
    moco = _moco()
    moco(_batch())["contrast"].backward()
    learning = {name.split(".")[0] for name, p in moco.named_parameters() if p.grad is not None}
    assert learning == {"network", "head"}
    assert not any(p.requires_grad for p in moco.key_network.parameters())


def test_key_networks_follow_and_the_queue_takes_the_keys() -> None:
    moco = _moco()
    before = copy.deepcopy(moco.state_dict())
    moco(_batch())
    with torch.no_grad():
        for parameter in moco.network.parameters():
            parameter += 1
    moco.after_step()
    after = moco.state_dict()
    name = "conv1.weight"
    expected = 0.9 * before[f"key_network.{name}"] + 0.1 * after[f"network.{name}"]
    torch.testing.assert_close(after[f"key_network.{name}"], expected)
    assert not torch.equal(after["queue.keys"][:8], before["queue.keys"][:8])
    assert torch.equal(after["queue.keys"][8:], before["queue.keys"][8:])
    lengths = after["queue.keys"].norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(32))


def test_keys_stand_in_the_order_of_their_images() -> None:
    batch = _batch()
    whole, parts = (_moco(groups=groups).eval()._keys(batch.images[1], batch) for groups in (1, 3))
    torch.testing.assert_close(whole, parts)  # in eval mode no image depends on another


def test_keys_of_a_part_have_its_own_batch_statistics() -> None:
    batch = _batch()
    whole, parts = (_moco(groups=groups).train()._keys(batch.images[1], batch) for groups in (1, 2))
    assert (whole - parts).abs().max() > 1e-3


def test_a_resumed_training_continues_bit_for_bit(tmp_path: Path) -> None:
    def learn(folder: str, epochs: int) -> dict[str, Tensor]:
        moco = _moco()
        settings = TrainSettings(epochs=epochs, lr=0.03, batch_size=8, schedule=lambda _: 1.0)
        options: dict[str, Any] = {"role": "teacher", "seed": 0, "device": building.CPU}
        train(moco, _batches(), settings, directory=tmp_path / folder, **options)
        return moco.state_dict()

    whole = learn("whole", 3)
    learn("parts", 2)
    resumed = learn("parts", 3)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_step_can_be_accumulated() -> None:
    batch, moco = _batch(), _moco(groups=1).eval()
    parts = batch.split(2)
    mean = sum(part.share * moco(part)["contrast"] for part in parts)
    torch.testing.assert_close(mean, moco(batch)["contrast"])


@pytest.mark.parametrize("wrong", [{"momentum": 1.5}, {"temperature": 0.0}, {"groups": 0}])
def test_impossible_values_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        _moco(**wrong)
