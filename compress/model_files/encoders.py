"""Weights of encoders, from files that may also hold a classifier or self-supervised heads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from compress.console.messages import log
from compress.model_files.weights import find_state, load_state

NO_HEAD = "none"  # nothing of the network or its file is left out


@dataclass(frozen=True)
class Layout:
    """Where a kind of checkpoint has the encoder: tensors under `prefix`, but for those of `heads`.

    Without a prefix a file is of this kind if it has one of the heads.
    """

    prefix: str
    heads: tuple[str, ...]


# As facebookresearch's moco, swav and dino write them, without `module.` and what is around the
# state dict (of DINO's whole checkpoints the `teacher`).
LAYOUTS: Mapping[str, Layout] = {
    "MoCo": Layout("encoder_q.", ("fc",)),
    "SwAV": Layout("", ("projection_head", "prototypes")),
    "DINO": Layout("backbone.", ("head",)),
}


def load_encoder_weights(
    network: nn.Module, model: str, weights: str, head: str | None = None
) -> None:
    """Load a file, or published weights, into an encoder; what is left out of them is logged.

    Args:
        network: gives embeddings; what was cut off it is an identity.
        head: path of the module that was cut off, `NO_HEAD` for none; None: the last identity of
            the network, and the heads of the file's layout.

    Raises:
        UserError: there are no such weights, or what is left of them is not the network's.
    """
    layout, encoder, left_out = encoder_tensors(find_state(model, weights), network, head)
    if layout is not None:
        log(f"  {model}: {weights} has the keys of {layout}")
    if left_out:
        counts = ", ".join(f"{name} ({count} tensors)" for name, count in left_out.items())
        log(f"  {model}: left out of {weights}: {counts}")
    load_state(network, encoder, None, weights)


def encoder_tensors(
    state: Mapping[str, Tensor], network: nn.Module, head: str | None = None
) -> tuple[str | None, dict[str, Tensor], dict[str, int]]:
    """The layout of a state dict, the encoder's tensors, and how many others there are by part."""
    name = next((name for name, layout in LAYOUTS.items() if _has(state, layout)), None)
    layout = LAYOUTS[name] if name is not None else Layout("", ())
    heads = _heads(network, layout) if head is None else () if head == NO_HEAD else (head,)
    encoder: dict[str, Tensor] = {}
    left_out: dict[str, int] = {}
    for key, tensor in state.items():
        own = key.removeprefix(layout.prefix)
        part = next((one for one in heads if own.startswith(f"{one}.")), None)
        if part is None and key.startswith(layout.prefix):
            encoder[own] = tensor
        else:
            part = part or key.partition(".")[0]
            left_out[part] = left_out.get(part, 0) + 1
    return name, encoder, left_out


def _has(state: Mapping[str, Tensor], layout: Layout) -> bool:
    starts = (layout.prefix,) if layout.prefix else tuple(f"{head}." for head in layout.heads)
    return any(key.startswith(starts) for key in state)


def _heads(network: nn.Module, layout: Layout) -> Sequence[str]:
    """The heads of a layout, and the last module of a network where it is an identity."""
    leaves = [path for path, one in network.named_modules() if not [*one.children()]]
    identities = [p for p in leaves if isinstance(network.get_submodule(p), nn.Identity)]
    return (*layout.heads, *identities[-1:])
