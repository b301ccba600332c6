"""The student alone is plain cross-entropy training."""

import torch
from torch.nn.functional import cross_entropy

from compress.methods.none import Alone
from tests.methods import building


def test_the_loss_is_cross_entropy_of_the_students_logits() -> None:
    module = building.distillation(Alone).eval()
    batch = building.first_batch(module)
    terms = module(batch)
    expected = cross_entropy(module.student(batch.images[0]), batch.labels)
    torch.testing.assert_close(terms, {"ce": expected})


def test_deploys_the_student_itself() -> None:
    module = building.distillation(Alone)
    assert module.method.deploy(module.student) is module.student
