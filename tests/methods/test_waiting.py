"""A step on a GPU must not wait for the device: found here by the operators that would."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from compress.engine import TrainSettings
from compress.engine.loop import OptimizerStep
from compress.methods import METHODS, Method
from compress.methods.aekd import AEKD
from compress.methods.aekd_f import AEKDF
from tests.methods import building

aten = torch.ops.aten
# Their result, or its shape, is known to Python only when the device has computed it. `equal` is
# none of them: the numbers of a batch's rows are compared, and those are on the CPU.
WAITING = {
    aten._local_scalar_dense.default,  # .item(), float(), if, printing
    aten.is_nonzero.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
}


class NoWaiting(TorchDispatchMode):
    """Refuse operators that make Python wait for the device."""

    def __torch_dispatch__(
        self, function: Any, _types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        masks = args[1] if function is aten.index.Tensor else ()
        is_masked = any(mask is not None and mask.dtype == torch.bool for mask in masks)
        assert function not in WAITING and not is_masked, f"{function} waits for the device"
        return function(*args, **(kwargs or {}))


def _step(method_class: type[Method]) -> None:
    module = building.distillation(method_class)
    batches = [*building.batches(module.method).epoch(0)]
    module.begin_phase(None, batches[0])
    learn = OptimizerStep(
        module.train(), TrainSettings(epochs=1, lr=0.01, batch_size=8), building.CPU
    )
    with NoWaiting():
        for batch in batches[:2]:
            learn(batch, 0.0, {})


@pytest.mark.parametrize("method_class", METHODS.values(), ids=lambda m: m.__name__)
def test_a_step_waits_for_nothing(method_class: type[Method]) -> None:
    if issubclass(method_class, (AEKD, AEKDF)):
        pytest.skip("solves for the teachers' weights on the CPU, see methods/blocks/min_norm.py")
    _step(method_class)


def test_waiting_is_seen() -> None:
    with pytest.raises(AssertionError, match="waits"):
        _step(AEKD)
