"""Weight files that are wrong in some way, drawn from a generator."""

import io
import random
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from compress.model_files import load_state, read_state
from tests.hostile.datasets import Attack
from tests.hostile.pictures import harmed

State = dict[str, Any]


def network() -> nn.Module:
    """As small as a network with a classifier can be."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def _quantised(tensor: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch means to remove it; files that have it stay
        return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


# What may stand in the place of a tensor, and whether it is still a weight.
CHANGES: dict[str, tuple[Callable[[Tensor], Any], bool]] = {
    "sparse": (lambda t: t.to_sparse(), False),
    "csr": (lambda t: t.reshape(len(t), -1).to_sparse_csr(), False),
    "meta": (lambda t: t.to("meta"), False),
    "quantised": (_quantised, False),
    "complex": (lambda t: t.to(torch.complex64), False),
    "float8": (lambda t: t.to(torch.float8_e4m3fn), False),
    "uint16": (lambda t: t.abs().to(torch.uint16), False),
    "scalar": (lambda t: t.sum(), False),
    "empty": (lambda t: t[:0, ...].reshape(0), False),
    "integers": (lambda t: t.to(torch.int64), False),
    "booleans": (lambda t: t > 0, False),
    "nan": (lambda t: torch.full_like(t, float("nan")), False),
    "infinite": (lambda t: torch.full_like(t, float("inf")), False),
    "infinite as float32": (lambda t: torch.full_like(t, 1e300, dtype=torch.float64), False),
    "endless": (lambda t: torch.zeros(1).expand(10**12), False),
    "many classes": (lambda t: torch.zeros(1, 1).expand(10**9, t.shape[-1]), False),
    "no number": (lambda t: "weights", False),
    "bfloat16": (lambda t: t.to(torch.bfloat16), True),
    "float64": (lambda t: t.to(torch.float64), True),
    "not contiguous": (lambda t: torch.stack([t, t], -1)[..., 0], True),
    "a parameter": (lambda t: nn.Parameter(t), True),
}
_SAFE = ("scalar", "empty", "integers", "booleans", "nan", "infinite", "complex", "float8")


def referring_to_itself() -> State:
    """A mapping in which the search for a state dict goes round."""
    content: State = {"epoch": 3}
    content["state_dict"] = {"model": content}
    return content


def _pack(content: Any, draw: random.Random, folder: Path) -> Any:
    kind = draw.randrange(6)
    if kind == 0:
        return {"state_dict": content, "epoch": draw.choice((1, None, "x"))}
    if kind == 1:
        return {"module." * 3 + key: value for key, value in content.items()}
    if kind == 2:
        return draw.choice((referring_to_itself(), [content], {3: content}, {(1, 2): 3}, None, {}))
    if kind == 3:
        return {**content, "attack": Attack(folder / "harmed")}
    return content


def compressed(path: Path, content: Any) -> None:
    """Save as torch does, but compressed: few bytes that unpack to many."""
    written = io.BytesIO()
    torch.save(content, written)
    with zipfile.ZipFile(written) as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        for name in plain.namelist():
            out.writestr(name, plain.read(name))


def hostile_weights(folder: Path, draw: random.Random) -> tuple[str, Callable[[], None]]:
    """Write a file into the folder; its kind, and what reads and loads it."""
    state: State = dict(network().state_dict())
    floats = [name for name, tensor in state.items() if tensor.is_floating_point()]
    is_torch = draw.random() < 0.7
    kind = draw.choice([*(CHANGES if is_torch else _SAFE), "whole"])
    if kind != "whole":
        name = draw.choice(floats)
        state[name] = CHANGES[kind][0](state[name])
    if is_torch:
        path = folder / "weights.pth"
        packed = _pack(state, draw, folder)
        if draw.random() < 0.1:
            compressed(path, torch.zeros(1 << 20)), (kind := "compressed")
        else:
            torch.save(packed, path, _use_new_zipfile_serialization=draw.random() < 0.8)
    else:
        path = folder / "weights.safetensors"
        save_file(state, path)
    if draw.random() < 0.4:
        path.write_bytes(harmed(path.read_bytes(), draw))
        kind = "bytes"
    elif not is_torch and draw.random() < 0.3:
        _rewrite_header(path, draw)
        kind = "header"

    def load() -> None:
        target = network()
        load_state(target, read_state(path), "2", str(path))
        assert all(tensor.isfinite().all() for tensor in target.state_dict().values())

    return f"{path.suffix[1:]} {kind}", load


def _rewrite_header(path: Path, draw: random.Random) -> None:
    """Another type, shape or place of a tensor than its bytes have."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = content[8 : 8 + length]
    old, new = draw.choice(
        (
            (b'"F32"', draw.choice((b'"F8_E8M0"', b'"F4"', b'"C64"', b'"F64"', b'"X"', b"7"))),
            (
                b'"shape":[4',
                draw.choice((b'"shape":[4000000000000', b'"shape":[-4', b'"shape":[[]')),
            ),
            (b'"data_offsets":[', b'"data_offsets":[9'),
            (b"{", draw.choice((b"[" * 50_000, b'{"__metadata__":3,', b""))),
        )
    )
    header = header.replace(old, new, 1)
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])
