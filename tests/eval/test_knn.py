"""knn against a plain loop; what k and the metric mean."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from compress.errors import UserError
from eval.knn import knn, knn_accuracy
from eval.linear_probe import Features
from tests.eval.test_linear_probe import context


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("k", [1, 5])
def test_equals_a_loop_over_all_pairs(metric: str, k: int) -> None:
    drawn = torch.Generator().manual_seed(1)
    train = torch.randn(40, 6, generator=drawn) * torch.rand(40, 1, generator=drawn)
    test = torch.randn(30, 6, generator=drawn)
    labels = torch.arange(40) % 2  # of two classes there is no tie among an odd number
    truths = torch.arange(30) % 2
    right = 0
    for point, truth in zip(test.double(), truths, strict=True):
        pairs = []
        for other, label in zip(train.double(), labels, strict=True):
            cosine = float(point @ other / (point.norm() * other.norm()))
            distance = -cosine if metric == "cosine" else float((point - other).norm())
            pairs.append((distance, int(label)))
        nearest = [label for _, label in sorted(pairs)[:k]]
        right += Counter(nearest).most_common(1)[0][0] == int(truth)
    features = Features(train, labels, test, truths, 2)
    assert knn_accuracy(features, k=k, metric=metric) == pytest.approx(100 * right / 30)


def test_task_compares_the_inits(tmp_path: Path, scenes: Callable[..., Path]) -> None:
    entry = context(tmp_path, {"name": "image_folder", "root": str(scenes() / "crops")})
    outcome = knn(entry, k=3)
    rows = {row["init"]: row for row in outcome["rows"]}
    assert list(rows) == ["distilled", "alone", "scratch"]
    assert rows["distilled"]["spread"] == {"top1_percent": 0.0}  # nothing but scratch has a seed
    assert "3 nearest training pictures by cosine" in outcome["protocol"]
    assert outcome["data"]["train_images"] > 3


def test_k_above_the_number_of_pictures(tmp_path: Path, scenes: Callable[..., Path]) -> None:
    entry = context(tmp_path, {"name": "image_folder", "root": str(scenes() / "crops")})
    with pytest.raises(UserError, match="k is 100000"):
        knn(replace(entry, inits=("alone",)), k=100_000)
