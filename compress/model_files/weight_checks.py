"""Which tensors of somebody's file may be weights; whatever may not is a UserError naming it."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from compress.errors import UserError

# Not float8: its values mean nothing without their scales, which are kept elsewhere.
_DTYPES = {
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
}


def check_plain(state: Mapping[str, Tensor], origin: str, size_bytes: int) -> None:
    """Refuse what is no plain tensor with values of its own.

    Args:
        size_bytes: of the file. A few of its bytes can stand for a tensor that fills the memory.

    Raises:
        UserError: names the first such tensor.
    """
    for name, tensor in state.items():
        if problem := _problem(tensor, size_bytes):
            raise UserError(
                f"{origin}: tensor '{name}' {problem}; expected plain tensors of numbers, as "
                "model.state_dict() gives them before any quantisation"
            )


def _problem(tensor: Tensor, size_bytes: int) -> str | None:
    if type(tensor) not in (Tensor, nn.Parameter):
        return f"is a {type(tensor).__name__}"
    if tensor.layout != torch.strided or tensor.is_nested:
        return f"is not dense ({tensor.layout})"
    if tensor.dtype not in _DTYPES:
        return f"is of {tensor.dtype}"
    if tensor.is_meta:
        return "has no values (it is on the meta device)"
    if tensor.numel() * tensor.element_size() > size_bytes:
        return f"has {tuple(tensor.shape)} values, more than the whole file"
    return None


def check_kinds(state: Mapping[str, Tensor], own: Mapping[str, Tensor], origin: str) -> None:
    """Refuse integers where the network has floating-point values.

    Raises:
        UserError: names the first such tensor.
    """
    for name in sorted({*state} & {*own}):
        if own[name].is_floating_point() and not state[name].is_floating_point():
            raise UserError(
                f"{origin}: tensor '{name}' is of {state[name].dtype}, the network's is of "
                f"{own[name].dtype}; give weights that were not quantised"
            )


def check_finite(state: Mapping[str, Tensor], origin: str) -> None:
    """Refuse weights that no training can go on from.

    Raises:
        UserError: names the first tensor with a value that is not finite.
    """
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise UserError(
                f"{origin}: not all values of '{name}' are finite numbers; give the weights of a "
                "training that did not diverge."
            )
