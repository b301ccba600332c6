"""Bank scores against plain indexing, what they hold in memory, and the law of the draws."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from compress.methods.blocks import memory_bank
from compress.methods.blocks.memory_bank import (
    ClassSampler,
    bank_bytes,
    bank_note,
    bank_scores,
    embed,
    uniform_bank,
    write_rows,
)

# Classes of unequal size in no order; class 3 has no image.
LABELS = torch.tensor([2, 0, 1, 4, 0, 2, 2, 0, 4, 1, 0, 2])


class _Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation makes, backward included."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, (tuple, list)) else [made]:
            if isinstance(one, Tensor):
                self.size = max(self.size, one.numel())
        return made


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=[2**25, 25], ids=["whole", "in parts"])
def largest(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(memory_bank, "LARGEST_PRODUCT", request.param)
    yield request.param


def test_scores_and_gradient_are_those_of_plain_indexing(largest: int) -> None:
    anchors = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    bank = torch.randn(12, 3, dtype=torch.float64)
    index = torch.randint(12, (5, 30), generator=_generator())  # with repeats
    upstream = torch.randn(5, 30, dtype=torch.float64)
    expected = (bank[index] @ anchors[:, :, None]).squeeze(2)
    got = bank_scores(anchors, bank, index)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad((s * upstream).sum(), anchors)[0] for s in (got, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)
    assert bank.grad is None


def test_neither_pass_makes_more_than_the_stated_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_bank, "LARGEST_PRODUCT", 300)
    anchors = torch.randn(16, 8, requires_grad=True)
    bank = torch.randn(100, 8)  # the whole product has 1600 elements, N * C * D is 2560
    with _Largest() as seen:
        bank_scores(anchors, bank, torch.randint(100, (16, 20))).sum().backward()
    assert seen.size <= bank.numel()
    monkeypatch.setattr(memory_bank, "LARGEST_PRODUCT", 2**25)
    with _Largest() as seen:
        bank_scores(anchors, bank, torch.randint(100, (16, 20))).sum().backward()
    assert seen.size == 1600


def test_scores_stay_in_float32_under_autocast() -> None:
    anchors = torch.randn(4, 64, requires_grad=True)
    bank, index = torch.randn(9, 64), torch.randint(9, (4, 5))
    plain = bank_scores(anchors, bank, index)
    (expected,) = torch.autograd.grad(plain.sum(), anchors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = bank_scores(anchors, bank, index)
        (gradient,) = torch.autograd.grad(got.sum(), anchors)
    assert torch.equal(got, plain)
    assert torch.equal(gradient, expected)


def test_embeddings_have_length_one_and_ignore_the_scale() -> None:
    features, weight = torch.randn(6, 5), torch.randn(3, 5)
    embedded = embed(features, weight, torch.zeros(3))
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(6))
    torch.testing.assert_close(embed(7 * features, weight, torch.zeros(3)), embedded)


def test_a_new_bank_is_uniform_with_rows_of_length_one_on_average() -> None:
    bank = uniform_bank(5000, 128)
    limit = (3 / 128) ** 0.5
    assert 0.999 * limit < float(bank.abs().max()) <= limit
    assert float(bank.square().sum(1).mean()) == pytest.approx(1, abs=0.01)


def test_a_row_moves_to_the_normalised_average_and_the_last_of_equal_ones_counts() -> None:
    bank = torch.randn(6, 4, dtype=torch.float64)
    expected, features = bank.clone(), torch.randn(4, 4, dtype=torch.float64)
    index = torch.tensor([2, 5, 2, 0])
    for row, position in ((5, 1), (2, 2), (0, 3)):
        moved = 0.7 * expected[row] + 0.3 * features[position]
        expected[row] = moved / moved.square().sum().sqrt()
    write_rows(bank, index, features, 0.7)
    torch.testing.assert_close(bank, expected, rtol=1e-12, atol=1e-12)


def test_all_other_images_are_drawn_where_as_many_are_asked_for(largest: int) -> None:
    sampler = ClassSampler(LABELS, 8)  # classes 0 and 2 have 4 images of 12
    assert sampler.distinct
    drawn = sampler.others(torch.tensor([2, 0]), _generator())
    for row, own in zip(drawn, (2, 0), strict=True):
        assert sorted(row.tolist()) == [i for i in range(12) if LABELS[i] != own]


@pytest.mark.parametrize("negatives", [3, 9], ids=["distinct", "with repeats"])
def test_every_other_image_is_equally_likely_and_own_ones_never_come(
    largest: int, negatives: int
) -> None:
    draws = 4000
    sampler = ClassSampler(LABELS, negatives)
    assert sampler.distinct == (negatives == 3)
    for own in (0, 1, 2, 4):
        drawn = sampler.others(torch.full((draws,), own), _generator(own))
        assert drawn.shape == (draws, negatives)
        if sampler.distinct:
            assert all(len(set(row)) == negatives for row in drawn.tolist())
        counted = torch.bincount(drawn.flatten(), minlength=12)
        other = own != LABELS
        assert int(counted[~other].sum()) == 0
        expected = draws * negatives / int(other.sum())
        # Six standard deviations of a count at most (repeats); distinct draws vary less.
        assert float((counted[other] - expected).abs().max()) < 6 * expected**0.5


def test_images_of_the_own_class_are_equally_likely() -> None:
    drawn = ClassSampler(LABELS, 3).same(torch.full((4000,), 2), _generator())
    counted = torch.bincount(drawn, minlength=12)
    assert int(counted[LABELS != 2].sum()) == 0
    assert float((counted[LABELS == 2] - 1000).abs().max()) < 6 * 1000**0.5


def test_draws_repeat_for_many_images_and_for_many_negatives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert ClassSampler(LABELS, 8).notes() == []
    (note,) = ClassSampler(LABELS, 9).notes()
    assert "9 negatives per image with repeats, from 8 or more" in note
    monkeypatch.setattr(memory_bank, "LARGEST_DISTINCT", 11)
    assert not ClassSampler(LABELS, 2).distinct


def test_draws_are_no_part_of_the_state() -> None:
    assert not ClassSampler(LABELS, 3).state_dict()


def test_impossible_draws_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        ClassSampler(LABELS, 0)
    with pytest.raises(ValueError, match="all 3 training images are of one class"):
        ClassSampler(torch.tensor([1, 1, 1]), 2)


def test_bytes_are_those_of_table_12_of_the_cocord_paper() -> None:
    banks = [uniform_bank(50_000, 128) for _ in range(2)]
    assert sum(bank.nbytes for bank in banks) == bank_bytes(50_000, 128)
    assert bank_note(50_000, 128, 1) == "two memory banks of 50,000 x 128 float32: 51.20 MB"
    assert bank_note(1_281_167, 128, 1).endswith(": 1,311.92 MB")  # ImageNet
