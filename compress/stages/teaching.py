"""What a student learns from: its batches, and the teachers as the recipe's engine runs them."""

import importlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compress import deployment
from compress.accounting import count_macs
from compress.artifacts import Job, sha256_file
from compress.compiled import CompiledTaps, pays
from compress.console import log
from compress.data import Batch, Dataset, ImageBatches, Images, evenly
from compress.data.shared import SharedBatches
from compress.distillation import Distillation, Source
from compress.frozen import difference, freeze
from compress.methods import METHODS
from compress.recipe import MethodPart
from compress.stages import order_seed
from compress.tapped_graph import TappedGraph, Untraceable
from compress.taps import Tapped, Taps, TapSpecs
from compress.teacher_cache import CachedTeacher, TeacherCache, obstacle, planning_remark
from compress.teachers import SharedTeachers
from compress.training import Batches

# Images of the test split on which the effect of other arithmetic on targets is measured.
_COMPARED = 256
# Images of the training split that an int8 teacher is calibrated on.
_CALIBRATION = 512


class Teaching:
    """The batches and the teachers of one student; with companions, those of all of them."""

    def __init__(self, job: Job, data: Dataset, teachers: Sequence[deployment.Student]) -> None:
        self.job = job
        self.data = data
        self.teachers = teachers
        self.engine = job.recipe.engine
        self._caches: list[CachedTeacher] = []
        self._remarks: list[str] = []
        self.batches = self._batches()

    @property
    def shared_batches(self) -> Batches:
        """Those of the main training, which companions read together."""
        if self.job.companions is None:
            return self.batches
        batches: Batches = self.job.companions.setdefault(
            ("batches", self._key), SharedBatches(self.batches)
        )
        return batches

    @cached_property
    def probe(self) -> Batch:
        """The first batch, to find out what learns."""
        return next(iter(self.batches.epoch(0)))

    def teach(self, module: Distillation, *, is_main: bool) -> None:
        """Let the student learn from fast teachers; to be called once the module has entered.

        They show what the phase, or the main training, reads, and nothing else is computed.
        """
        compiled = self._compiled_student(module)
        if compiled is not None:
            module.look_with(compiled)
        wanted = module.teacher_taps
        if not wanted:
            return
        if self.job.companions is None or not is_main:
            module.learn_from(self._sources(wanted))
            return
        shared: SharedTeachers = self.job.companions.setdefault(
            ("teachers", self._key), SharedTeachers(self._sources)
        )
        module.learn_from(shared.sources(wanted, len(self.teachers)))

    def measured(self) -> dict[str, Any]:
        """What there is to tell of the teaching; no result depends on it."""
        self._remark(*(remark for cached in self._caches for remark in cached.remarks()))
        return {"teaching": self._remarks}

    def _sources(self, wanted: tuple[str, ...]) -> list[Source]:
        return [self._source(number, wanted) for number in range(len(self.teachers))]

    def _source(self, number: int, wanted: tuple[str, ...]) -> Source:
        teacher = self.teachers[number]
        specs = TapSpecs.from_dict(teacher.description["taps"])
        name = "teacher" if len(self.teachers) == 1 else f"teacher {number + 1}"
        precision = self.engine.teacher
        shows: Callable[[Tensor], Taps]
        if precision == "int8":
            shows = self._int8(teacher, specs, wanted)
        else:
            shows = fast = freeze(
                teacher.network,
                specs,
                wanted,
                compile=self._compiles(teacher.network, factor=1),
                precision=precision,
                name=name,
            )
            self._remark(*fast.remarks())
        if precision != "float32":
            images = self._sample(self.data.test, _COMPARED)
            found = difference(shows, Tapped(teacher.network, specs, wanted), images)
            told = ", ".join(f"{key} {value:.2g}" for key, value in found.items())
            self._remark(f"{name} in {precision} against float32 on {len(images)} images: {told}")
        cached = self._cached(shows, number, specs, wanted)
        return cached or (lambda batch, view: shows(batch.images[view]))

    def _cached(
        self, shows: Callable[[Tensor], Taps], number: int, specs: TapSpecs, wanted: Sequence[str]
    ) -> CachedTeacher | None:
        """The teacher behind its cache; None where the recipe wants none or it cannot serve."""
        cache, job = self.engine.cache, self.job
        if cache is None:
            return None
        reader = self.batches.reader
        views = zip(METHODS[job.arguments["part"].name].views, reader.augment, strict=True)
        augment = [name for view, name in views if view.teacher]
        images, slots = len(self.data.train), self.batches.slots
        reason = obstacle(wanted, specs, augment, images, slots)
        if reason is not None:
            self._remark(reason)
            return None
        known = {"logits": specs.num_classes, "pooled": specs.pooled_width or 0}
        widths = {kind: known[kind] for kind in wanted}
        weights = job.run_folder / "teacher" / str(number) / "teacher.safetensors"
        identity = {
            "teacher": sha256_file(weights),
            "images": self.data.train.digest(),
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
        self._caches.append(CachedTeacher(shows, opened, tuple(widths)))
        return self._caches[-1]

    def _int8(
        self, teacher: deployment.Student, specs: TapSpecs, wanted: tuple[str, ...]
    ) -> Callable[[Tensor], Taps]:
        int8 = importlib.import_module("export.int8_teacher")
        images = self._sample(self.data.train, _CALIBRATION)
        shows: Callable[[Tensor], Taps]
        shows = int8.int8_teacher(teacher.network, specs, wanted, torch.split(images, 64))
        return shows

    def _sample(self, images: Images, count: int) -> Tensor:
        pixels = images.fetch(evenly(images, count)).to(self.job.device)
        return self.data.preprocessing.normalise(pixels)

    def _compiled_student(self, module: Distillation) -> Callable[[Tensor], Taps] | None:
        """The student's taps from a compiled graph; None where that does not pay or work."""
        if not self._compiles(module.student, factor=3):  # backward is two forwards
            return None
        module.student.train()
        try:
            graph = TappedGraph(module.student, module.method.context.student, module.student_taps)
        except Untraceable as reason:
            self._remark(f"the student runs uncompiled: {reason}")
            return None
        return CompiledTaps(graph, "student")

    def _compiles(self, network: nn.Module, *, factor: int) -> bool:
        train = self.job.recipe.distill.train
        macs = count_macs(network, self.data.preprocessing.input_shape).macs
        images = train.epochs * len(self.data.train)
        return pays(
            self.engine.compile,
            self.job.device,
            macs=float(factor * macs * images),
            steps=train.epochs * len(self.batches),
        )

    def _remark(self, *remarks: str) -> None:
        for remark in remarks:
            log(f"  {self.job.name}: {remark}")
        self._remarks += remarks

    def _batches(self) -> ImageBatches:
        recipe = self.job.recipe
        part: MethodPart = self.job.arguments["part"]
        return ImageBatches(
            self.data.train,
            self.data.preprocessing,
            batch_size=recipe.distill.train.batch_size,
            augment=[view.augment or self.data.augment for view in METHODS[part.name].views],
            seed=order_seed(recipe, self.job.arguments["trial"]),
            device=self.job.device,
            workers=self.job.workers,
            views=recipe.data.views,
            views_seed=order_seed(recipe, 0),
        )

    @property
    def _key(self) -> tuple[Any, ...]:
        """What companions must have in common to read the same batches."""
        reader, recipe = self.batches.reader, self.job.recipe
        seeds = recipe.seed, reader.seed, reader.views_seed
        return recipe.data.model_dump_json(), reader.batch_size, reader.augment, seeds
