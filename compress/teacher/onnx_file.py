"""A teacher that is an ONNX file: logits of images, computed by ONNX Runtime on the CPU."""

import importlib
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from compress.errors import UserError
from compress.taps import Taps

# ONNX types of numbers that are weights; whole numbers of 32 or 64 bits are shapes and indices.
_WEIGHT_TYPES = ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "INT8", "UINT8", "INT4", "UINT4")


class OnnxTeacher(nn.Module):
    """Images (N, 3, S, S), normalised -> logits (N, K) in float32, without gradient.

    Its state is the file itself. A file for batches of a fixed size B gets its images B by B, the
    last ones with zeros behind them.
    """

    file: Tensor

    def __init__(self, content: Tensor) -> None:
        """Run the file whose bytes are `content` (uint8)."""
        super().__init__()
        self.register_buffer("file", content)
        # ONNX Runtime is imported by those who want it.
        onnx_files = importlib.import_module("compress.onnx")
        with tempfile.TemporaryDirectory(prefix="onnx.") as folder:
            path = Path(folder) / "teacher.onnx"
            path.write_bytes(content.numpy().tobytes())
            # Threads that wait asleep: between two batches the student needs the cores.
            self._session = onnx_files.open_session(path, spin=False)
        self._input = self._session.get_inputs()[0]

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images on any device."""
        fixed = self._input.shape[0] if isinstance(self._input.shape[0], int) else len(images)
        logits = [self._run(part, fixed) for part in torch.split(images.detach().cpu(), fixed)]
        return torch.cat(logits).to(images.device)

    def _run(self, images: Tensor, rows: int) -> Tensor:
        filled = pad(images, (0, 0, 0, 0, 0, 0, 0, rows - len(images)))
        pixels: Any = filled.contiguous().numpy()
        (output,) = self._session.run(None, {self._input.name: pixels})
        return torch.from_numpy(output)[: len(images)]

    def signature(self) -> tuple[str, str]:
        """What the file takes and what it gives, in words."""
        sides = (self._session.get_inputs(), self._session.get_outputs())
        takes, gives = (", ".join(map(_described, values)) for values in sides)
        return takes, gives

    def fits(self, shape: tuple[int, int, int], classes: int | None) -> bool:
        """Whether it takes images (N, C, H, W) alone and gives logits (N, K) alone, in float32."""
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if [len(inputs), len(outputs)] != [1, 1]:
            return False
        if {inputs[0].type, outputs[0].type} != {"tensor(float)"}:
            return False
        return _matches(inputs[0].shape[1:], shape) and _matches(outputs[0].shape[1:], [classes])

    def parameters_of_file(self) -> int:
        """Numbers in the weights among the graph's initializers, whatever their type.

        Weights in `Constant` nodes and in the graphs inside `If` and `Loop` are not counted.
        """
        onnx = importlib.import_module("onnx")
        types = {getattr(onnx.TensorProto, name, None) for name in _WEIGHT_TYPES}
        graph = onnx.load_from_string(self.file.cpu().numpy().tobytes()).graph
        return sum(math.prod(one.dims) for one in graph.initializer if one.data_type in types)


def open_onnx_teacher(
    path: Path, shape: tuple[int, int, int], classes: int | None = None
) -> OnnxTeacher:
    """Read a file that takes images (N, *shape) and gives logits of so many classes.

    Args:
        classes: None: any number.

    Raises:
        UserError: it is no such file.
    """
    onnx_files = importlib.import_module("compress.onnx")
    onnx_files.check_file(path)
    model = importlib.import_module("onnx").load(path, load_external_data=False)
    if any(one.external_data for one in model.graph.initializer):
        raise UserError(f"'{path}' keeps tensors in a file beside it; save it as one file")
    content = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    try:
        teacher = OnnxTeacher(content)
    except UserError as error:
        raise UserError(f"'{path}': {error}") from None
    takes, gives = teacher.signature()
    expected = f"float32 (N, {', '.join(map(str, shape))}) and float32 (N, {classes or 'K'})"
    problem = f"'{path}' takes {takes} and gives {gives}; expected are {expected}"
    if not teacher.fits(shape, classes):
        raise UserError(problem)
    try:
        output = tuple(teacher(torch.zeros(2, *shape)).shape)
    except Exception as error:  # those of ONNX Runtime have no common base that is public
        reason = " ".join(str(error).split())
        raise UserError(f"'{path}' cannot run on images {(2, *shape)}: {reason}") from None
    if output not in {(2, classes or output[-1])}:
        raise UserError(f"{problem}; of two images it made {output}")
    return teacher


@dataclass(frozen=True)
class OnnxForward:
    """An ONNX teacher as `compress.teacher.ensemble.TeacherNetwork`."""

    network: OnnxTeacher
    name: str

    def __call__(self, images: Tensor) -> Taps:
        """Its logits."""
        return Taps(logits=self.network(images))

    def compiled_rows(self) -> None:
        """ONNX Runtime takes any number at once."""

    def notes(self) -> list[str]:
        """A sentence on what runs it."""
        return [f"{self.name}: an ONNX file, run by ONNX Runtime on the CPU"]


def _matches(given: Sequence[Any], wanted: Sequence[int | None]) -> bool:
    """Whether dimensions, of which names stand for any number, are those that are wanted."""
    return len(given) == len(wanted) and all(
        not isinstance(own, int) or other is None or own == other
        for own, other in zip(given, wanted, strict=True)
    )


def _described(value: Any) -> str:
    """`float32 (N, 3, 32, 32)` of an input or output; names stand for any number."""
    kind = value.type.removeprefix("tensor(").removesuffix(")")
    kind = {"float": "float32", "double": "float64"}.get(kind, kind)
    return f"{kind} ({', '.join(str(one or 'any') for one in value.shape)})"
