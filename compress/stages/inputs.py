"""The batches and teachers that a student learns from, shared with jobs in lockstep with it."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from compress.data import Batch, Dataset, ImageBatches, conversion
from compress.data.batch import BatchSource
from compress.data.shared import SharedBatches
from compress.distill.module import Distillation
from compress.methods import find_method
from compress.methods.contract import LossWeights, Phase, TeacherForward, View, joined_views
from compress.model_files import artifacts
from compress.recipe.schema import MethodPart
from compress.stages import compile_forward, compiles, logits_only, training_batches
from compress.stages.job import Job
from compress.stages.teacher import preprocessing_of
from compress.storage.fingerprints import sha256_file
from compress.taps import TappedForward, TapSpecs
from compress.teacher.ensemble import TeacherEnsemble
from compress.teacher.settings import CacheSettings, InferenceSettings, Teacher, TeacherImages
from compress.teacher.shared import SharedEnsemble


class StudentInputs:
    """The batches and the teachers of one student; in lockstep, those of all its jobs."""

    def __init__(
        self,
        job: Job,
        data: Dataset,
        teachers: Sequence[artifacts.Student],
        weights: LossWeights,
    ) -> None:
        """`weights` of the terms: a view may be for the teacher only where kd is not 0."""
        self.job = job
        self.data = data
        self.teachers = teachers
        self.weights = weights
        self.batches = self._batches()

    @property
    def main_batches(self) -> BatchSource:
        """Those of the main training, which jobs in lockstep read together."""
        if self.job.lockstep_values is None:
            return self.batches
        lockstep_values, key = self.job.lockstep_values, ("batches", self._key)
        if key not in lockstep_values:
            # Phases read `batches` in their own time.
            lockstep_values[key] = SharedBatches(self._batches())
        batches: BatchSource = lockstep_values[key]
        return batches

    @cached_property
    def probe(self) -> Batch:
        """The first batch, to find out what learns."""
        batch: Batch = next(iter(self.main_batches.epoch(0)))
        return batch

    def student_forward(self, module: Distillation, phase: Phase | None) -> TappedForward | None:
        """The student compiled, where it learns and the run is long enough for it."""
        if phase is not None and phase.student != "train":
            return None
        return compile_forward(
            self.job,
            self.data,
            module.student,
            module.method.context.student,
            module.student_taps,
            self.job.recipe.distill.train,
            name=self.job.name,
            rows=self._usual_student_rows,
        )

    def teacher_forwards(self, module: Distillation, phase: Phase | None) -> list[TeacherForward]:
        """Teachers made fast for what a phase, or the main training, reads; maybe none."""
        wanted = module.teacher_taps(phase)
        if not wanted:
            return []
        if self.job.lockstep_values is None or phase is not None:
            return self.ensemble.forwards(wanted)
        seen = tuple(view.is_for_teacher(self.weights) for view in self._views)
        key = "teachers", self._key, seen, self.ensemble.identity(wanted)
        shared: SharedEnsemble
        shared = self.job.lockstep_values.setdefault(key, SharedEnsemble(self.ensemble))
        return [*shared.forwards(wanted)]

    @cached_property
    def ensemble(self) -> TeacherEnsemble:
        """The teachers as the recipe's engine runs them."""
        recipe = self.job.recipe
        views = zip(self._views, self.batches.reader.augment, strict=True)
        seen = {i: made for i, (v, made) in enumerate(views) if v.is_for_teacher(self.weights)}
        images = TeacherImages(
            batches=self.batches,
            rows=self._usual_rows(),
            epochs=recipe.distill.train.epochs,
            views=seen,
            train=self.data.train,
            test=self.data.test,
        )
        numbers = range(len(self.teachers))
        teachers = [self._teacher(number) for number in numbers]
        return TeacherEnsemble(teachers, self._inference(), images, name=self.job.name)

    def _teacher(self, number: int) -> Teacher:
        """A teacher of the run, which is shown images as its file says, mostly as the data's."""
        loaded, several = self.teachers[number], len(self.teachers) > 1
        weights = self.job.run_folder / "teacher" / str(number) / "teacher.safetensors"
        keys = ("architecture", "code", "taps", "method", "encoder_prefix")
        identity = {key: loaded.description.get(key) for key in keys}
        seen = preprocessing_of(loaded)
        if conversion(self.data.preprocessing, seen) is not None:
            identity["preprocessing"] = seen.as_dict()
        data, train = replace(self.data, preprocessing=seen), self.job.recipe.distill.train
        runs = logits_only.KEY not in loaded.description  # as a network of torch
        is_float = self.job.recipe.engine.teacher != "int8"
        return Teacher(
            name=f"teacher {number + 1}" if several else "teacher",
            network=loaded.network,
            specs=TapSpecs.from_dict(loaded.description["taps"]),
            preprocessing=seen,
            identity=identity | {"sha256": sha256_file(weights)},
            compile=runs and is_float and compiles(self.job, data, loaded.network, train, passes=1),
        )

    def _inference(self) -> InferenceSettings:
        engine = self.job.recipe.engine
        if engine.cache is None:
            return InferenceSettings(engine.teacher)
        cache_folder = engine.cache.folder
        folder = Path(cache_folder) if cache_folder else self.job.run_folder / "teacher_cache"
        dtype: torch.dtype = getattr(torch, engine.cache.dtype)
        cache = CacheSettings(folder, dtype, int(engine.cache.max_gb * 1e9))
        return InferenceSettings(engine.teacher, cache)

    def _usual_rows(self) -> int:
        """Images that a network is mostly shown at once: those of this process, of one part."""
        return self.probe.usual_part(self.job.recipe.distill.train.accumulate)

    def _usual_student_rows(self) -> int:
        """Images that the student is mostly shown at once: those of the views that are joined."""
        return self._usual_rows() * max(map(len, joined_views(self._views)))

    @property
    def _views(self) -> tuple[View, ...]:
        part: MethodPart = self.job.arguments["part"]
        return find_method(part.name).needs(part.arguments).views

    def _batches(self) -> ImageBatches:
        return training_batches(
            self.job,
            self.data,
            self.job.recipe.distill.train,
            augment=[view.image_view(self.data.augment) for view in self._views],
            trial=self.job.arguments["trial"],
        )

    @property
    def _key(self) -> tuple[Any, ...]:
        """Values that jobs have in common if they read the same batches."""
        reader, recipe = self.batches.reader, self.job.recipe
        seeds = recipe.seed, reader.seed, reader.views_seed
        return recipe.data.model_dump_json(), reader.batch_size, reader.augment, seeds
