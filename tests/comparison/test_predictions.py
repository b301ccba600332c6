"""Predictions files: their content, their bytes, their bound."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compress.comparison import read_predictions, write_predictions
from compress.comparison.predictions import prediction_arrays
from compress.errors import UserError
from compress.tasks import Classification

LOGITS = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0])
BATCHES = [(LOGITS[:4], LABELS[:4]), (LOGITS[4:], LABELS[4:])]


def test_what_a_network_says_of_each_image_in_order(tmp_path: Path) -> None:
    arrays = Classification().predict(nn.Identity(), BATCHES)
    write_predictions(tmp_path / "predictions.npz", arrays, "digest")
    with np.load(tmp_path / "predictions.npz") as file:
        expected = [[np.exp(x) / sum(np.exp(row)) for x in row] for row in LOGITS.double().tolist()]
        assert file["probabilities"].dtype == np.float16
        assert file["probabilities"] == pytest.approx(np.array(expected), rel=5e-4)
        assert file["top1"].tolist() == LOGITS.argmax(1).tolist()
        assert file["labels"].tolist() == LABELS.tolist()
    saved = read_predictions(tmp_path / "predictions.npz")
    percent = Classification().evaluate(nn.Identity(), BATCHES)["top1_percent"]
    assert saved.images == "digest" and 100 * saved.correct.mean() == pytest.approx(percent)


def test_equal_predictions_are_equal_bytes(tmp_path: Path) -> None:
    arrays = Classification().predict(nn.Identity(), BATCHES)
    for name in ("one.npz", "other.npz"):
        write_predictions(tmp_path / name, arrays, "digest")
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "other.npz").read_bytes()


def test_processes_take_turns_at_the_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five batches one process has the first, third and fifth, the other the rest."""
    batches = [(LOGITS[i : i + 1], LABELS[i : i + 1]) for i in range(5)]
    expected = Classification().predict(nn.Identity(), batches)
    monkeypatch.setattr(
        "compress.tasks.classification.all_gather_items",
        lambda items: [items[0][0::2], items[0][1::2]],
    )
    together = Classification().predict(nn.Identity(), batches)
    assert all(np.array_equal(expected[name], together[name]) for name in expected)


def test_of_many_probabilities_the_largest_are_kept() -> None:
    probabilities = np.random.default_rng(0).dirichlet(np.ones(12), 5)
    labels = np.arange(5)
    kept = prediction_arrays(labels, probabilities.argmax(1), probabilities, most=59)
    assert "probabilities" not in kept and kept["top_classes"].shape == (5, 10)
    for row, classes, values in zip(
        probabilities, kept["top_classes"], kept["top_probabilities"], strict=True
    ):
        order = sorted(range(12), key=lambda label: -row[label])[:10]
        assert classes.tolist() == order
        assert values == pytest.approx(row[order], rel=5e-4)
    assert "probabilities" in prediction_arrays(labels, labels, probabilities, most=60)


def test_a_damaged_file_is_told_in_words(tmp_path: Path) -> None:
    path = tmp_path / "predictions.npz"
    with pytest.raises(UserError, match="not found"):
        read_predictions(path)
    write_predictions(path, Classification().predict(nn.Identity(), BATCHES), "digest")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="damaged"):
        read_predictions(path)
    np.savez(path, labels=np.arange(3))
    with pytest.raises(UserError, match="damaged"):
        read_predictions(path)
