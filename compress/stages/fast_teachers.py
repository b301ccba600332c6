"""Teachers as the recipe's engine runs them: their arithmetic, and the cache of what they said."""

import copy
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress.console.messages import log
from compress.data import Dataset, ImageBatches, Images, evenly
from compress.distill.module import Source
from compress.errors import UserError
from compress.methods import METHODS
from compress.model_files import artifacts
from compress.recipe.schema import Engine
from compress.stages import compiles
from compress.stages.job import Job
from compress.storage.fingerprints import fingerprint_of, sha256_file
from compress.taps import Tapped, TappedForward, Taps, TapSpecs
from compress.taps.graph import TappedGraph, Untraceable
from compress.teacher.cache import CachedTeacher, TeacherCache, obstacle, planning_remark
from compress.teacher.inference import difference, freeze

# Images of the test split on which the effect of other arithmetic on targets is measured.
_COMPARED = 256
# Images of the training split that an int8 teacher is calibrated on.
_CALIBRATION = 512


def check_arithmetic(engine: Engine, device: torch.device) -> None:
    """Refuse, before anything is trained, a teacher's arithmetic that the device does not have."""
    if engine.teacher == "int8" and device.type != "cpu":
        raise UserError(
            f"engine.teacher: int8 runs on the CPU alone, this run is on {device}; take bfloat16 "
            "there, or give --device cpu"
        )


def check_int8(network: nn.Module, specs: TapSpecs, wanted: Sequence[str]) -> None:
    """Refuse, before anything is trained, a teacher that cannot be made int8 for these taps."""
    try:
        TappedGraph(copy.deepcopy(network).eval(), specs, wanted)
    except Untraceable as reason:
        raise UserError(
            f"the teacher cannot be made int8: {reason}; set engine.teacher to bfloat16 or float32"
        ) from None


class FastTeachers:
    """The teachers of a job's student, or of all its companions."""

    def __init__(
        self,
        job: Job,
        data: Dataset,
        teachers: Sequence[artifacts.Student],
        batches: ImageBatches,
        rows: int,
    ) -> None:
        """`batches` are those that the student learns from, mostly `rows` images at once."""
        self.job = job
        self.data = data
        self.teachers = teachers
        self.batches = batches
        self.rows = rows
        self.engine = job.recipe.engine
        self._caches: list[CachedTeacher] = []
        self._remarks: list[str] = []

    def identity(self, wanted: Sequence[str]) -> str:
        """What students must have in common to learn these taps from the same teachers.

        What a cache serves is not united with what none can serve.
        """
        every = range(len(self.teachers))
        served = [self._obstacle(n, wanted) is None for n in every] if self.engine.cache else None
        engine = self.engine.model_dump(exclude={"share_teacher"})
        known = [self._known(number) for number in every]
        return fingerprint_of({"teachers": known, "engine": engine, "served": served})

    def remarks(self) -> list[str]:
        """What was told of the teachers, and last what their caches saved."""
        self._remark(*(remark for cached in self._caches for remark in cached.remarks()))
        return self._remarks

    def sources(self, wanted: tuple[str, ...]) -> list[Source]:
        """What shows these taps of each teacher, in order."""
        return [self._source(number, wanted) for number in range(len(self.teachers))]

    def _source(self, number: int, wanted: tuple[str, ...]) -> Source:
        teacher = self.teachers[number]
        specs = TapSpecs.from_dict(teacher.description["taps"])
        name = "teacher" if len(self.teachers) == 1 else f"teacher {number + 1}"
        precision, train = self.engine.teacher, self.job.recipe.distill.train
        shows: TappedForward
        compiled_rows: Callable[[], int | None] | None = None
        if precision == "int8":
            shows = self._int8(teacher, specs, wanted)
        else:
            shows = fast = freeze(
                teacher.network,
                specs,
                wanted,
                compile=compiles(self.job, self.data, teacher.network, train, passes=1),
                precision=precision,
                rows=self.rows,
                name=name,
            )
            compiled_rows = fast.compiled_rows
            self._remark(*fast.remarks())
        if precision != "float32":
            images = self._sample(self.data.test, _COMPARED)
            found = difference(shows, Tapped(teacher.network, specs, wanted), images)
            told = ", ".join(f"{key} {value:.3g}" for key, value in found.items())
            self._remark(f"{name} in {precision} against float32 on {len(images)} images: {told}")
        cached = self._cached(shows, compiled_rows, number, specs, wanted)
        return cached or (lambda batch, view: shows(batch.images[view]))

    def _cached(
        self,
        shows: TappedForward,
        compiled_rows: Callable[[], int | None] | None,
        number: int,
        specs: TapSpecs,
        wanted: Sequence[str],
    ) -> CachedTeacher | None:
        """The teacher behind its cache; None where the recipe wants none or it cannot serve."""
        cache, job = self.engine.cache, self.job
        if cache is None:
            return None
        reader = self.batches.reader
        augment, images, slots = self._augment(), len(self.data.train), self.batches.slots
        reason = self._obstacle(number, wanted)
        if reason is not None:
            self._remark(reason)
            return None
        widths = {kind: specs.width(kind) for kind in wanted}
        identity = {
            "teacher": self._known(number),
            "images": self.data.train.version(),
            "preprocessing": self.data.preprocessing.as_dict(),
            "augment": augment[0],
            "views": [reader.views, reader.views_seed] if reader.views else None,
            "arithmetic": [self.engine.teacher, job.device.type],
        }
        dtype: torch.dtype = getattr(torch, cache.dtype)
        limit = int(cache.max_gb * 1e9)
        draws = job.recipe.distill.train.epochs * len(augment)
        self._remark(planning_remark(images, slots, widths, dtype, limit, draws))
        folder = Path(cache.folder) if cache.folder else job.run_folder / "teacher_cache"
        opened = TeacherCache.open(
            folder,
            identity,
            images=images,
            slots=slots,
            widths=widths,
            dtype=dtype,
            max_bytes=limit,
        )
        self._remark(*opened.remarks())
        cached = CachedTeacher(
            shows, opened, tuple(widths), plan=reader.plan, compiled_rows=compiled_rows
        )
        self._caches.append(cached)
        return cached

    def _obstacle(self, number: int, wanted: Sequence[str]) -> str | None:
        specs = TapSpecs.from_dict(self.teachers[number].description["taps"])
        images, slots = len(self.data.train), self.batches.slots
        return obstacle(wanted, specs, self._augment(), images, slots)

    def _augment(self) -> list[str]:
        """The augmentations of the views that teachers see."""
        views = METHODS[self.job.arguments["part"].name].views
        seen = zip(views, self.batches.reader.augment, strict=True)
        return [name for view, name in seen if view.teacher]

    def _known(self, number: int) -> dict[str, Any]:
        """All that a teacher's outputs depend on: its weights, and what network they belong to."""
        weights = self.job.run_folder / "teacher" / str(number) / "teacher.safetensors"
        keys = ("architecture", "code", "taps", "method", "encoder_prefix")
        description = self.teachers[number].description
        return {key: description.get(key) for key in keys} | {"sha256": sha256_file(weights)}

    def _int8(
        self, teacher: artifacts.Student, specs: TapSpecs, wanted: tuple[str, ...]
    ) -> Callable[[Tensor], Taps]:
        int8 = importlib.import_module("compress.teacher.int8")
        images = self._sample(self.data.train, _CALIBRATION)
        shows: Callable[[Tensor], Taps]
        shows = int8.int8_teacher(teacher.network, specs, wanted, torch.split(images, 64))
        return shows

    def _sample(self, images: Images, count: int) -> Tensor:
        pixels = images.fetch(evenly(images, count)).to(self.job.device)
        return self.data.preprocessing.normalise(pixels)

    def _remark(self, *remarks: str) -> None:
        for remark in remarks:
            log(f"  {self.job.name}: {remark}")
        self._remarks += remarks
