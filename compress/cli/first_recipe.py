"""The recipe that `compress init` writes: choices by the images, the teacher and a size budget."""

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from string import Template

import torch

from compress.accounting.pairs import account_pair
from compress.data import Dataset, FileImages, open_data, some_sizes
from compress.errors import UserError
from compress.model_files.weights import published_weights

_MEGABYTE = 1e6
_BYTES = 4  # of a float32 parameter
_LOOKED_AT = 64  # files whose size in pixels is read
# Students to choose from, by falling size, for small images and for photos.
_SMALL_STUDENTS = ("resnet14x4", "resnet8x4", "resnet14x2", "resnet20", "resnet8")
_PHOTO_STUDENTS = tuple(
    f"torchvision:{name}"
    for name in (
        "resnet34",
        "resnet18",
        "mobilenet_v3_large",
        "mobilenet_v2",
        "mobilenet_v3_small",
        "shufflenet_v2_x1_0",
        "shufflenet_v2_x0_5",
    )
)
# Where there is no budget.
_SMALL_STUDENT, _PHOTO_STUDENT = "resnet8x4", "torchvision:resnet18"
_SMALL_TEACHER, _PHOTO_TEACHER = "resnet32x4", "torchvision:resnet50"
_SMALL = 48  # pixels up to which networks for small images are taken

_TEMPLATE = Template("""\
# $classes classes of $images: a small network from a large one.
#
#   compress check $file    # data, networks, disk, time; trains nothing
#   compress run $file      # run again, it skips what is done
#
# A key that is left out has its default; the reference of recipe keys explains all.

seed: 0

# A folder for each class, in train/ and test/, or alone: then a fifth of each class is held
# out for tests. `validation: N` takes N training images to choose the epoch by.
# augment: crop_flip (pad, crop, mirror; for small images), resized_crop (ImageNet's), none.
data:
  name: image_folder
  root: $root
  image_size: $size
  augment: $augment

# The large network. It must be good: students seldom become better than it is. Weights named
# DEFAULT are published for ImageNet, a download; a classifier with another number of classes
# is replaced by a new one, which `train` trains.
teacher:
$teacher

# What ships: $megabytes MB as float32, about a quarter of that as int8.
student:
$student

# The method that ships, and others trained beside it for the report; `none` is the student
# alone. `compress methods` lists all of them.
distill:
  method: $method
  train: $train
  compare: $compare

# Parameters, MACs and latency; ONNX files, float and int8, with a check that they compute
# what was trained.
account: {latency: {batch_sizes: [1]}}
export: {}
""")


@dataclass(frozen=True)
class FirstRecipe:
    """Choices of a recipe, and remarks on them for the terminal."""

    images: str
    image_size: int
    train_images: int
    classes: int
    teacher: str | None  # None: `teacher_file` describes itself
    teacher_file: str | None
    student: str
    method: str
    shipped_mb: float
    remarks: Sequence[str]

    @classmethod
    def of(
        cls,
        *,
        images: str,
        teacher: str | None,
        student: str | None,
        budget_mb: float | None,
        image_size: int | None,
    ) -> "FirstRecipe":
        """Look at the images and choose what was not given.

        Args:
            images: a folder as `image_folder` reads it.
            teacher: MODEL, MODEL@WEIGHTS, or the file of a teacher written here.
            student: MODEL.
            budget_mb: most megabytes (1e6 bytes) of the float32 parameters of what ships.
            image_size: pixels.

        Raises:
            UserError: the folder is not as it must be, a network is unknown, nothing fits.
        """
        data = open_data({"name": "image_folder", "root": images, "image_size": image_size or 224})
        side = _shorter_side(data)
        size = image_size or _size_for(side)
        is_small = size <= _SMALL
        model, weights = _read_teacher(teacher or (_SMALL_TEACHER if is_small else _PHOTO_TEACHER))
        if budget_mb is None:
            choices = [student or (_SMALL_STUDENT if is_small else _PHOTO_STUDENT)]
        else:
            usual = _SMALL_STUDENTS if is_small else _PHOTO_STUDENTS
            choices = [student] if student else [*usual]
        classes = len(data.class_names)
        name, method, shipped = _fitting(model, choices, classes, size, budget_mb)
        return cls(
            images=images,
            image_size=size,
            train_images=len(data.train),
            classes=classes,
            teacher=model,
            teacher_file=weights,
            student=name,
            method=method,
            shipped_mb=shipped,
            remarks=(
                f"{classes} classes, {len(data.train):,} training and {len(data.test):,} test "
                f"images, shorter side {side} pixels (median), read as {size} x {size}",
                f"teacher {model or weights}, student {name} with {method}: "
                f"{shipped:.1f} MB of float32 parameters ship",
            ),
        )

    def text(self, file: str) -> str:
        """The recipe, with comments; `file` is its name."""
        epochs, lr = (30, 0.01) if published_weights(self.student) else (60, 0.05)
        compare = [name for name in ("none", "kd") if name != self.method]
        return _TEMPLATE.substitute(
            file=file,
            classes=self.classes,
            images=self.images,
            root=_quoted(self.images),
            size=self.image_size,
            augment="crop_flip" if self.image_size <= 64 else "resized_crop",
            teacher="\n".join(self._teacher()),
            student="\n".join(self._student()),
            megabytes=f"{self.shipped_mb:.1f}",
            method="{name: simkd, reduction: 2}" if self.method == "simkd" else self.method,
            train=self._train(epochs, lr),
            compare=f"[{', '.join(compare)}]",
        )

    def _train(self, epochs: int, lr: float) -> str:
        usual = 64 if self.train_images >= 2000 else 32 if self.train_images >= 500 else 16
        batch = min(usual, max(2, self.train_images // 4))
        return f"{{epochs: {epochs}, lr: {lr}, batch_size: {batch}, schedule: cosine}}"

    def _teacher(self) -> Iterator[str]:
        if self.teacher is None:
            yield f"  checkpoint: {_quoted(self.teacher_file or '')}"
            return
        yield f"  model: {_quoted(self.teacher)}"
        epochs, lr = 60, 0.05
        if self.teacher_file is not None:
            epochs, lr = 10, 0.01
            yield f"  weights: {_quoted(self.teacher_file)}"
            if self.teacher_file not in published_weights(self.teacher):
                yield "  # Delete `train` if the file was trained for these very classes."
        yield f"  train: {self._train(epochs, lr)}"

    def _student(self) -> Iterator[str]:
        yield f"  model: {_quoted(self.student)}"
        if published_weights(self.student):
            yield "  weights: DEFAULT"


def _quoted(text: str) -> str:
    """A string as YAML in one line."""
    return text if text.replace("_", "").replace("/", "").isalnum() else json.dumps(text)


def _shorter_side(data: Dataset) -> int:
    """Median of the shorter sides of some of the training images."""
    assert isinstance(data.train, FileImages)
    return int(statistics.median(map(min, some_sizes(data.train, _LOOKED_AT))))


def _size_for(side: int) -> int:
    """Pixels that images are read with: fewer on a CPU, where those of ImageNet take days."""
    if side <= _SMALL:
        return 32
    if side <= 96:
        return 64
    return 224 if torch.cuda.is_available() else 128


def _read_teacher(given: str) -> tuple[str | None, str | None]:
    """Model and weights of what was given for a teacher."""
    if given.endswith(".safetensors") and "@" not in given:
        return None, given
    model, at, weights = given.rpartition("@")
    if at:
        return model, weights
    return given, "DEFAULT" if published_weights(given) else None


def _fitting(
    teacher: str | None,
    students: Sequence[str],
    classes: int,
    size: int,
    budget_mb: float | None,
) -> tuple[str, str, float]:
    """The first student, with the method, whose shipped parameters fit; and their megabytes.

    SimKD where it fits: it ships a projector and the teacher's classifier beside the student.

    Raises:
        UserError: none fits.
    """
    least: tuple[float, str] | None = None
    for student in students:
        for method in ("simkd", "kd"):
            shipped = _shipped_mb(teacher, student, method, classes, size)
            if shipped is None:
                continue
            if budget_mb is None or shipped <= budget_mb:
                return student, method, shipped
            least = min(least or (shipped, student), (shipped, student))
    assert least is not None
    raise UserError(
        f"--budget-mb {budget_mb:g}: the smallest is {least[1]} with {least[0]:.1f} MB as float32 "
        f"(int8: about {least[0] / 4:.1f} MB); allow more, or name a --student of your own"
    )


def _shipped_mb(
    teacher: str | None, student: str, method: str, classes: int, size: int
) -> float | None:
    """Megabytes of the float32 parameters of what a method ships; None where it cannot be used."""
    if teacher is None and method == "simkd":
        return None  # the file says what it is when it is read
    part = {"name": method, "reduction": 2} if method == "simkd" else {"name": method}
    try:
        costs = account_pair(
            teacher=teacher or student,
            student=student,
            method=part,
            num_classes=classes,
            input_shape=(3, size, size),
        )
    except UserError:
        if method == "simkd":
            return None  # kd, which takes any pair, says what is wrong with the networks
        raise
    return float(costs["deployed_parameters"]) * _BYTES / _MEGABYTE
