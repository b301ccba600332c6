"""The engine on step.py's pair, put together as stages/teaching.py does, in its variants.

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
from torch import Tensor, nn

from compress.data import ImageBatches
from compress.data.images import MemoryImages, Preprocessing, evenly
from compress.data.shared import SharedBatches
from compress.distill.module import Distillation, Source, teacher_context
from compress.engine.compiling import CompiledTaps
from compress.engine.lockstep import side_by_side
from compress.engine.loop import training_steps
from compress.engine.optimization import Settings
from compress.methods import METHODS
from compress.methods.contract import Context, Terms
from compress.models.forward import lay_channels_last
from compress.seeding import seeded
from compress.taps import Tapped, Taps
from compress.taps.discovery import discover
from compress.taps.graph import TappedGraph
from compress.tasks import Classification
from compress.teacher.cache import CachedTeacher, TeacherCache
from compress.teacher.inference import freeze
from compress.teacher.shared import SharedTeachers

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
        self.pieces = Pieces(lambda: pair.settled(device))
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
        self._teachers = SharedTeachers(lambda wanted: [self._source(wanted)])
        numbers = range(students)
        self.modules = [self._module(pair.networks(kept, seed=i)[0], i) for i in numbers]

    def steps(self) -> Iterator[object]:
        """Stops before each step of the real loop, which all students take."""
        settings = Settings(
            epochs=self.epochs,
            lr=pair.OPTIMIZER["lr"],
            batch_size=pair.BATCH,
            precision=self.variant.student,
        )
        shared = SharedBatches(self.batches)
        runs = [
            training_steps(
                module,
                shared if len(self.modules) > 1 else self.batches,
                settings,
                directory=self._folder / str(number),
                role="benchmark",
                seed=number,
                device=self.device,
            )
            for number, module in enumerate(self.modules)
        ]
        yield from side_by_side(runs) if len(runs) > 1 else runs[0]

    def _module(self, student: nn.Module, seed: int) -> Distillation:
        specs = discover(student, SHAPE, pair.STUDENT)
        context = Context(
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
        module.enter(None, next(iter(self.batches.epoch(0))))
        look: Callable[[Tensor], Taps] = Tapped(student, specs, module.student_taps)
        if self.variant.compile:
            graph = TappedGraph(student.train(), specs, module.student_taps)
            look = CompiledTaps(graph, "student")
        module.look_with(self.pieces.network("student", look))
        module.learn_from(self._teachers.sources(module.teacher_taps, 1))
        return module

    def _source(self, wanted: Sequence[str]) -> Source:
        shows: Callable[[Tensor], Taps]
        compiled_rows: Callable[[], int | None] | None = None
        if self.variant.teacher == "int8":
            from compress.teacher.int8 import int8_teacher  # imported by those that want it

            pixels = self.images.fetch(evenly(self.images, CALIBRATION))
            some = torch.split(self.preprocessing.normalise(pixels), pair.BATCH)
            shows = int8_teacher(self.teacher, self.specs, wanted, some)
        else:
            how, precision = self.variant.compile, self.variant.teacher
            shows = frozen = freeze(
                self.teacher,
                self.specs,
                wanted,
                compile=how,
                precision=precision,
                rows=pair.BATCH,
            )
            compiled_rows = frozen.compiled_rows
        source: Source = lambda batch, view: shows(batch.images[view])  # noqa: E731
        if self.variant.cache is not None:
            plan = self.batches.reader.plan
            source = CachedTeacher(
                shows, self._cache(wanted), tuple(wanted), plan=plan, compiled_rows=compiled_rows
            )
            self.cached.append(source)
        return self.pieces.network("teacher", source)

    def _cache(self, wanted: Sequence[str]) -> TeacherCache:
        cache = TeacherCache.open(
            self._folder,
            {"of": "a benchmark"},
            images=len(self.images),
            slots=self.batches.slots,
            widths={kind: pair.CLASSES for kind in wanted},
            dtype=torch.float32,
            max_bytes=LARGEST_CACHE,
        )
        if self.variant.cache == "warm":
            plan = self.batches.reader.plan(0)
            for index in torch.split(plan.order, 1024):
                outputs = {kind: torch.randn(len(index), pair.CLASSES) for kind in wanted}
                cache.write(index, plan.slots[0][index], plan.view_ids[0][index], outputs)
        return cache


def terms_of(method: str) -> Terms:
    """Weights of hard labels, soft targets and own term, where KD is the soft term itself."""
    hard, soft, own = pair.WEIGHTS[method]
    return Terms(hard, 0, soft) if method == "kd" else Terms(hard, soft, own)
