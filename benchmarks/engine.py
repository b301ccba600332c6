"""The engine on step.py's pair, put together as stages/inputs.py does, in its variants.

A warm cache is filled with made-up outputs for the first epoch's views, so that all its batches are
found whole.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pair
import torch
from pieces import Pieces
from torch import nn

from compress.data import ImageBatches
from compress.data.images import MemoryImages, Preprocessing, evenly
from compress.data.shared import SharedBatches
from compress.distill.module import Distillation
from compress.engine.compiling import CompiledTaps
from compress.engine.lockstep import in_lockstep
from compress.engine.loop import Training
from compress.engine.optimization import TrainSettings
from compress.methods import METHODS
from compress.methods.contract import (
    LossWeights,
    MethodContext,
    NetworkForward,
    TeacherForward,
    teacher_context,
)
from compress.models.forward import lay_channels_last
from compress.seeding import seeded
from compress.taps import Tapped, TappedForward
from compress.taps.discovery import discover
from compress.taps.graph import TappedGraph
from compress.tasks import Classification
from compress.teacher.cache import CachedTeacher, OutputCache
from compress.teacher.inference import make_fast
from compress.teacher.shared import SharedEnsemble

SHAPE = (3, 32, 32)
CALIBRATION = 512  # images of an int8 teacher
LARGEST_CACHE = 10**10


@dataclass(frozen=True)
class Variant:
    """How the engine runs; see `engine` in a recipe."""

    compile: bool = False
    teacher: Literal["float32", "bfloat16", "int8"] = "float32"
    student: Literal["float32", "bfloat16"] = "float32"  # the recipe's train.precision
    cache: Literal["cold", "warm"] | None = None
    methods: tuple[str, ...] = tuple(pair.WEIGHTS)


VARIANTS = {
    "engine": Variant(),
    "compiled": Variant(compile=True),
    "bfloat16": Variant(teacher="bfloat16"),
    "int8": Variant(teacher="int8"),
    "compiled-int8": Variant(compile=True, teacher="int8"),
    "cold-cache": Variant(cache="cold", methods=("kd",)),
    "compiled-cold-cache": Variant(compile=True, cache="cold", methods=("kd",)),
    "warm-cache": Variant(cache="warm", methods=("kd",)),
    "compiled-warm-cache": Variant(compile=True, cache="warm", methods=("kd",)),
    "mixed": Variant(compile=True, teacher="bfloat16", student="bfloat16"),
    "mixed-warm-cache": Variant(compile=True, student="bfloat16", cache="warm", methods=("kd",)),
}


class Engine:
    """Students of one teacher on the same batches, as the distill stage trains them."""

    def __init__(
        self,
        method: str,
        kept: Path,
        variant: Variant,
        device: str,
        *,
        students: int = 1,
        epochs: int = 240,
    ) -> None:
        """`kept` is the folder of `pair.write`."""
        self.epochs = epochs
        self.cached: list[CachedTeacher] = []
        self.method = method
        self.variant = variant
        self.device = torch.device(device)
        self.pieces = Pieces(lambda: pair.settled(device), is_on=device == "cpu")
        self._folder = Path(tempfile.mkdtemp(dir=kept))  # goes with `kept`
        data = pair.read(kept)
        pixels = torch.from_numpy(data.pixels).permute(0, 3, 1, 2).contiguous()
        self.images = MemoryImages(pixels, torch.from_numpy(data.labels))
        self.preprocessing = Preprocessing(32, pair.MEAN, pair.STD)
        self.batches = ImageBatches(
            self.images,
            self.preprocessing,
            batch_size=pair.BATCH,
            augment=["crop_flip"],
            seed=0,
            device=self.device,
        )
        self.teacher = pair.networks(kept)[1].to(self.device)
        self.specs = discover(self.teacher, SHAPE, pair.TEACHER)
        self._teachers = SharedEnsemble(self)
        numbers = range(students)
        self.modules = [self._module(pair.networks(kept, seed=i)[0], i) for i in numbers]

    def steps(self) -> Iterator[object]:
        """Stops before each step of the real loop, which all students take."""
        settings = TrainSettings(
            epochs=self.epochs,
            lr=pair.OPTIMIZER["lr"],
            batch_size=pair.BATCH,
            precision=self.variant.student,
        )
        shared = SharedBatches(self.batches)
        runs = [
            Training(
                module,
                shared if len(self.modules) > 1 else self.batches,
                settings,
                directory=self._folder / str(number),
                role="benchmark",
                seed=number,
                device=self.device,
            ).run_in_turns()
            for number, module in enumerate(self.modules)
        ]
        yield from in_lockstep(runs) if len(runs) > 1 else runs[0]

    def _module(self, student: nn.Module, seed: int) -> Distillation:
        specs = discover(student, SHAPE, pair.STUDENT)
        context = MethodContext(
            student=specs,
            teachers=(teacher_context(self.teacher, self.specs),),
            num_classes=pair.CLASSES,
            train_size=len(self.images),
            labels=self.images.labels,
            batch_size=pair.BATCH,
            steps_per_epoch=len(self.batches),
            epochs=self.epochs,
        )
        with seeded(seed, "method", self.method):
            built = METHODS[self.method](context)
        if lay_channels_last(student, SHAPE):
            built.to(memory_format=torch.channels_last)
        teachers, weights = [self.teacher], built.protocols["crd"]
        assert weights == terms_of(self.method), "all candidates must learn the same"
        module = Distillation(
            student, teachers, built, weights, Classification(), kd_temperature=pair.TEMPERATURE
        ).to(self.device)
        forward: TappedForward = Tapped(student, specs, module.student_taps)
        if self.variant.compile:
            graph = TappedGraph(student.train(), specs, module.student_taps)
            forward = CompiledTaps(graph, "student")
        module.begin_phase(
            None,
            next(iter(self.batches.epoch(0))),
            student=self.pieces.network("student", forward),
            teachers=self._teachers.forwards(module.teacher_taps(None)),
        )
        return module

    def __len__(self) -> int:
        return 1  # teacher

    def forwards(self, wanted: Sequence[str]) -> list[TeacherForward]:
        """The teacher for these taps, see `compress.teacher.shared.Ensemble`."""
        network: TappedForward
        compiled_rows: Callable[[], int | None] | None = None
        if self.variant.teacher == "int8":
            from compress.teacher.int8 import int8_teacher  # imported by those that want it

            pixels = self.images.fetch(evenly(self.images, CALIBRATION))
            some = torch.split(self.preprocessing.normalise(pixels), pair.BATCH)
            network = int8_teacher(self.teacher, self.specs, wanted, some)
        else:
            how, precision = self.variant.compile, self.variant.teacher
            network = fast = make_fast(
                self.teacher,
                self.specs,
                wanted,
                compile=how,
                precision=precision,
                rows=pair.BATCH,
            )
            compiled_rows = fast.compiled_rows
        forward: TeacherForward = NetworkForward(network)
        if self.variant.cache is not None:
            plan = self.batches.reader.plan
            forward = cached = CachedTeacher(
                network,
                {0: self._cache(wanted)},
                tuple(wanted),
                plan=plan,
                compiled_rows=compiled_rows,
            )
            self.cached.append(cached)
        return [self.pieces.network("teacher", forward)]

    def _cache(self, wanted: Sequence[str]) -> OutputCache:
        cache = OutputCache.open(
            self._folder,
            {"of": "a benchmark"},
            images=len(self.images),
            views=self.batches.views_per_image,
            widths={kind: pair.CLASSES for kind in wanted},
            dtype=torch.float32,
            max_bytes=LARGEST_CACHE,
        )
        if self.variant.cache == "warm":
            plan = self.batches.reader.plan(0)
            for index in torch.split(plan.order, 1024):
                outputs = {kind: torch.randn(len(index), pair.CLASSES) for kind in wanted}
                cache.write(index, plan.view_numbers[0][index], plan.view_ids[0][index], outputs)
        return cache


def terms_of(method: str) -> LossWeights:
    """Weights of hard labels, soft targets and own term, where KD is the soft term itself."""
    hard, soft, own = pair.WEIGHTS[method]
    return LossWeights(hard, 0, soft) if method == "kd" else LossWeights(hard, soft, own)
