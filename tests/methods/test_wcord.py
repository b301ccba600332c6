"""WCoRD is GCKT and LCKT, each with its weight."""

from functools import partial
from typing import Any

import pytest
import torch

from compress.methods import METHODS
from compress.methods.contract import pooled
from compress.methods.lckt import lckt_loss
from compress.methods.wcord import WCoRD
from tests.methods import building


def test_adds_the_two_terms() -> None:
    weights: dict[str, Any] = {"global_weight": 0.5, "local_weight": 3.0}
    module = building.distillation(partial(WCoRD, **weights))  # type: ignore[arg-type]
    method = module.method
    assert isinstance(method, WCoRD)
    batch = building.first_batch(module)
    own, known = module._student_views(batch), module._teacher_views(batch)
    terms = method(own, known, batch)
    of_batch = lckt_loss(method.local.embedding(pooled(own)), pooled(known[0]))
    torch.testing.assert_close(terms["lckt"], 3 * of_batch)
    (contrast,) = method.contrasts
    drawn = method.draw_rows(batch)
    of_banks = contrast(pooled(own), pooled(known[0]), batch.index, drawn, method.temperature)
    torch.testing.assert_close(terms["gckt"], 0.5 * of_banks)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"weights are above 0, got 0\.0, 1\.0; gckt and lckt are"):
        building.distillation(partial(WCoRD, global_weight=0.0))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="one teacher, got 2"):
        building.distillation(METHODS["wcord"], teachers=2)
