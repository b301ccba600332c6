"""What a student learns from: its batches and its teachers, its own or those of companions."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

from compress.data import Batch, Dataset, ImageBatches
from compress.data.shared import SharedBatches
from compress.distill.module import Distillation
from compress.engine.compiling import compiled_taps
from compress.engine.loop import Batches
from compress.methods import METHODS
from compress.model_files import artifacts
from compress.recipe.schema import MethodPart
from compress.stages import compiles, order_seed
from compress.stages.fast_teachers import FastTeachers
from compress.stages.job import Job
from compress.teacher.shared import SharedTeachers


class Teaching:
    """The batches and the teachers of one student; with companions, those of all of them."""

    def __init__(self, job: Job, data: Dataset, teachers: Sequence[artifacts.Student]) -> None:
        self.job = job
        self.data = data
        self.teachers = teachers
        self.batches = self._batches()

    @property
    def shared_batches(self) -> Batches:
        """Those of the main training, which companions read together."""
        if self.job.companions is None:
            return self.batches
        companions, key = self.job.companions, ("batches", self._key)
        if key not in companions:
            # Phases read `batches` in their own time.
            companions[key] = SharedBatches(self._batches())
        batches: Batches = companions[key]
        return batches

    @cached_property
    def probe(self) -> Batch:
        """The first batch, to find out what learns."""
        batch: Batch = next(iter(self.shared_batches.epoch(0)))
        return batch

    @cached_property
    def _fast(self) -> FastTeachers:
        return FastTeachers(self.job, self.data, self.teachers, self.batches, self._usual_rows)

    @property
    def _usual_rows(self) -> int:
        """Images that a network is mostly shown at once: those of this process, of one part."""
        return self.probe.usual_part(self.job.recipe.distill.train.accumulate)

    def teach(self, module: Distillation, *, is_main: bool) -> None:
        """Let the student learn from fast teachers; to be called once the module has entered.

        They show what the phase, or the main training, reads, and nothing else is computed.
        """
        train = self.job.recipe.distill.train
        if compiles(self.job, self.data, module.student, train, passes=3):  # backward is two
            look = compiled_taps(
                module.student,
                module.method.context.student,
                module.student_taps,
                self.job.name,
                wish=self.job.recipe.engine.compile,
                rows=self._usual_rows,
            )
            if look is not None:
                module.look_with(look)
        wanted = module.teacher_taps
        if not wanted:
            return
        if self.job.companions is None or not is_main:
            module.learn_from(self._fast.sources(wanted))
            return
        key = "teachers", self._key, self._fast.identity(wanted)
        shared: SharedTeachers = self.job.companions.setdefault(
            key, SharedTeachers(self._fast.sources)
        )
        module.learn_from(shared.sources(wanted, len(self.teachers)))

    def measured(self) -> dict[str, Any]:
        """What there is to tell of the teaching; no result depends on it."""
        return {"teaching": self._fast.remarks()}

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
