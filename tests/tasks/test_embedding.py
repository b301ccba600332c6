"""The task without labels: neighbours that two embeddings share, and judgement by hidden labels."""

import math

import pytest
import torch
from torch import Tensor, nn

from compress.tasks import Embedding, knn_top1_percent, mutual_knn_percent, task_for

DRAW = torch.Generator().manual_seed(0)


def points(count: int, width: int) -> Tensor:
    return torch.randn(count, width, generator=DRAW)


def neighbours(rows: list[list[float]], among: list[list[float]], k: int, same: bool) -> list[set]:
    """By loops: of each row, the numbers of its k nearest by cosine, without itself where same."""

    def cosine(one: list[float], other: list[float]) -> float:
        product = math.fsum(a * b for a, b in zip(one, other, strict=True))
        lengths = [math.sqrt(math.fsum(a * a for a in v)) for v in (one, other)]
        return product / (lengths[0] * lengths[1])

    found = []
    for i, row in enumerate(rows):
        order = sorted(range(len(among)), key=lambda j: -cosine(row, among[j]))
        found.append(set([j for j in order if not (same and i == j)][:k]))
    return found


def test_shared_neighbours_are_those_counted_with_loops() -> None:
    one, other = points(40, 5), points(40, 9)
    for k in (1, 3, 10):
        sets = [neighbours(e.double().tolist(), e.double().tolist(), k, True) for e in (one, other)]
        shared = [len(a & b) / k for a, b in zip(*sets, strict=True)]
        assert mutual_knn_percent(one, other, k) == pytest.approx(100 * math.fsum(shared) / 40)


def test_an_embedding_has_its_own_neighbours_whatever_its_length_and_turn() -> None:
    rows = points(50, 6)
    turn = torch.linalg.qr(points(6, 6))[0]
    assert mutual_knn_percent(rows, 7 * rows @ turn) == 100
    assert mutual_knn_percent(rows[:4], rows[:4]) == 100, "fewer images than neighbours"


def test_unrelated_embeddings_share_as_many_as_chance_gives() -> None:
    count = 2000  # more than are compared at once
    assert mutual_knn_percent(points(count, 20), points(count, 20)) == pytest.approx(0.5, abs=0.15)


def test_knn_takes_the_majority_class_of_the_nearest_counted_with_loops() -> None:
    train, test = points(30, 4), points(20, 4)
    labels, truth = torch.arange(30) % 3, torch.arange(20) % 3
    nearest = neighbours(test.double().tolist(), train.double().tolist(), 5, False)
    votes = [[sum(int(labels[j]) == c for j in one) for c in range(3)] for one in nearest]
    right = sum(v.index(max(v)) == int(y) for v, y in zip(votes, truth, strict=True))
    assert knn_top1_percent(train, labels, test, truth, 5) == pytest.approx(100 * right / 20)


def test_a_network_alone_has_no_metric_and_with_its_teacher_the_mean_over_teachers() -> None:
    task, rows = task_for(labels=False), points(30, 3)
    batches = [(part, torch.zeros(len(part))) for part in rows.split(8)]
    assert isinstance(task, Embedding) and not task.has_classes
    assert task.evaluate(nn.Identity(), batches) == {}
    reference = task.reference(nn.Identity(), batches)
    assert torch.equal(reference, rows)
    other = points(30, 5)
    both = task.evaluate(nn.Identity(), batches, [reference, other])[task.metric]
    assert both == pytest.approx((100 + mutual_knn_percent(rows, other)) / 2)


def test_a_collapsed_teacher_is_weak_and_one_that_tells_images_apart_is_not() -> None:
    task, same = Embedding(), torch.ones(20, 1) * points(1, 4)
    wrong = points(20, 4).index_fill(0, torch.tensor(3), float("nan"))
    counts = {"num_classes": 0, "images": 20}
    assert "the same embedding" in (task.weakness({}, same, **counts) or "")
    assert "not all finite" in (task.weakness({}, wrong, **counts) or "")
    assert task.weakness({}, points(20, 4) + 5, **counts) is None


def test_hidden_labels_judge_and_are_called_that() -> None:
    task, rows, labels = Embedding(), torch.eye(4).repeat(6, 1), torch.arange(24) % 4
    batches = [(rows, torch.zeros(24))]
    judged = task.judge(nn.Identity(), (batches, labels), (batches, labels))
    assert judged == {"knn_top1_percent": 100.0}
    assert "labels hidden from training" in task.describe(judged)
