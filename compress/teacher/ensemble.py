"""The teachers of a student, made fast: their arithmetic, and the cache of their outputs."""

import importlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from compress.console.messages import log
from compress.data import Conversion, Images, conversion, evenly, split_labels
from compress.data.augment import AUGMENTATIONS, ImageView
from compress.methods.contract import NetworkForward, StoredOutputs, TeacherForward
from compress.storage.fingerprints import fingerprint_of
from compress.taps import Tapped, Taps
from compress.teacher.cache import CachedTeacher, OutputCache, obstacle, planning_note
from compress.teacher.inference import make_fast, measure_tap_differences
from compress.teacher.onnx_file import OnnxForward, OnnxTeacher
from compress.teacher.settings import InferenceSettings, Teacher, TeacherImages, arithmetic_name

# Images of the test split on which the effect of other arithmetic on targets is measured.
_COMPARED = 256
# Images of the training split that an int8 teacher is calibrated on.
_CALIBRATION = 512


class TeacherNetwork(Protocol):
    """A teacher made fast: normalised images (N, 3, S, S) -> taps."""

    def __call__(self, images: Tensor) -> Taps: ...

    def compiled_rows(self) -> int | None:
        """Images that a compiled network takes at once; None where none is compiled."""
        ...

    def notes(self) -> list[str]:
        """Sentences on what was done to the network."""
        ...


@dataclass(frozen=True)
class _Converting:
    """A teacher that reads other images than the batches have: the same crops, converted."""

    network: TeacherNetwork
    convert: Conversion

    def __call__(self, images: Tensor) -> Taps:
        return self.network(self.convert(images))

    def compiled_rows(self) -> int | None:
        return self.network.compiled_rows()

    def notes(self) -> list[str]:
        return self.network.notes()


class TeacherEnsemble:
    """The teachers of one student, or of several that learn side by side."""

    def __init__(
        self,
        teachers: Sequence[Teacher],
        settings: InferenceSettings,
        images: TeacherImages,
        *,
        name: str,
    ) -> None:
        """`name` begins the lines that are logged."""
        self.teachers = teachers
        self.settings = settings
        self.images = images
        self.name = name
        self._caches: list[CachedTeacher] = []
        self._notes: list[str] = []

    def __len__(self) -> int:
        return len(self.teachers)

    def identity(self, wanted: Sequence[str]) -> tuple[InferenceSettings, str]:
        """Settings and a digest that students have in common who can share these teachers' taps.

        What a cache serves is not united with what none can serve.
        """
        known = [{**teacher.identity, "compile": teacher.compile} for teacher in self.teachers]
        served = [self._obstacle(t, wanted) is None for t in self.teachers if self.settings.cache]
        return self.settings, fingerprint_of({"teachers": known, "served": served})

    def notes(self) -> list[str]:
        """All that was logged of the teachers, and last what their caches saved."""
        self._note(*(note for cached in self._caches for note in cached.notes()))
        return self._notes

    def forwards(self, wanted: Sequence[str]) -> list[TeacherForward]:
        """One forward per teacher that gives these taps, and computes nothing else."""
        return [self._forward(teacher, wanted) for teacher in self.teachers]

    def _forward(self, teacher: Teacher, wanted: Sequence[str]) -> TeacherForward:
        if isinstance(teacher.network, StoredOutputs):
            self._note(f"{teacher.name}: stored logits of images without augmentation, no network")
            return teacher.network
        network, convert = self._network(teacher, wanted), self._conversion(teacher)
        self._note(*network.notes())
        if self.settings.arithmetic != "float32":
            self._compare(teacher, network, wanted)
        if convert is not None:
            self._note(f"{teacher.name}: images are {convert.as_words()}")
            network = _Converting(network, convert)
        caches = self._open_caches(teacher, wanted) if self.settings.cache is not None else {}
        if not caches:
            return NetworkForward(network)
        cached = CachedTeacher(
            network,
            caches,
            tuple(next(iter(caches.values())).widths),
            plan=self.images.batches.reader.plan,
            compiled_rows=network.compiled_rows,
        )
        self._caches.append(cached)
        return cached

    def _conversion(self, teacher: Teacher) -> Conversion | None:
        """The conversion from the images of the batches to those of a teacher."""
        return conversion(self.images.batches.preprocessing, teacher.preprocessing)

    def _network(self, teacher: Teacher, wanted: Sequence[str]) -> TeacherNetwork:
        if isinstance(teacher.network, OnnxTeacher):
            return OnnxForward(teacher.network, teacher.name)
        if self.settings.arithmetic == "int8":
            # ONNX Runtime is imported by those who want it.
            int8 = importlib.import_module("compress.teacher.int8")
            images = self._sample(teacher, self.images.train, _CALIBRATION)
            quantized: TeacherNetwork = int8.int8_teacher(
                teacher.network, teacher.specs, wanted, torch.split(images, 64), name=teacher.name
            )
            return quantized
        return make_fast(
            teacher.network,
            teacher.specs,
            wanted,
            compile=teacher.compile,
            precision=self.settings.arithmetic,
            rows=self.images.rows,
            name=teacher.name,
        )

    def _compare(self, teacher: Teacher, network: TeacherNetwork, wanted: Sequence[str]) -> None:
        """Log how far the taps are from those in float32."""
        images = self._sample(teacher, self.images.test, _COMPARED)
        exact = Tapped(teacher.network, teacher.specs, wanted)
        differences = measure_tap_differences(network, exact, images)
        listed = ", ".join(f"{key} {value:.3g}" for key, value in differences.items())
        arithmetic = self.settings.arithmetic
        self._note(
            f"{teacher.name} in {arithmetic} against float32 on {len(images)} images: {listed}"
        )

    def _open_caches(self, teacher: Teacher, wanted: Sequence[str]) -> dict[int, OutputCache]:
        """The cache of each view, one for all that are made alike; none where it cannot serve."""
        settings, views = self.settings.cache, self.images.views
        assert settings is not None
        reason = self._obstacle(teacher, wanted)
        if reason is not None:
            self._note(reason)
            return {}
        # Which flip a view shares with another does not change what an id stands for.
        kinds = {number: replace(view, mirrored_like=None) for number, view in views.items()}
        counts = Counter(kinds.values())
        limit = settings.max_bytes // len(counts)
        opened = {
            view: self._open_cache(teacher, wanted, view, count, limit, named=len(counts) > 1)
            for view, count in counts.items()
        }
        return {number: opened[view] for number, view in kinds.items()}

    def _open_cache(
        self,
        teacher: Teacher,
        wanted: Sequence[str],
        view: ImageView,
        shown: int,
        limit: int,
        *,
        named: bool,
    ) -> OutputCache:
        """The cache of views that are made so, `shown` in a step, of `limit` bytes at most."""
        settings, images = self.settings.cache, self.images
        assert settings is not None
        reader, count = images.batches.reader, len(images.train)
        views = reader.views or AUGMENTATIONS[view.augment].views
        widths = {kind: teacher.specs.width(kind) for kind in wanted}
        draws = images.epochs * shown
        note = planning_note(count, views, widths, settings.dtype, limit, draws)
        self._note(f"{view.label}: {note}" if named else note)
        arithmetic = arithmetic_name(self.settings.arithmetic)
        identity = {
            "teacher": teacher.identity,
            "images": images.train.version(),
            "preprocessing": teacher.preprocessing.as_dict(),
            "augment": view.augment,
            **({"rotation": view.rotation} if view.rotation else {}),
            "views": [reader.views, reader.views_seed] if reader.views else None,
            "arithmetic": [arithmetic, images.batches.device.type],
        }
        if self._conversion(teacher) is not None:
            identity["converted from"] = images.batches.preprocessing.as_dict()
        cache = OutputCache.open(
            settings.folder,
            identity,
            images=count,
            views=views,
            widths=widths,
            dtype=settings.dtype,
            max_bytes=limit,
        )
        self._note(*cache.notes())
        return cache

    def _obstacle(self, teacher: Teacher, wanted: Sequence[str]) -> str | None:
        """Why a cache cannot serve."""
        images = self.images
        augmentations = [view.augment for view in images.views.values()]
        views = images.batches.views_per_image
        return obstacle(wanted, teacher.specs, augmentations, len(images.train), views)

    def _sample(self, teacher: Teacher, images: Images, count: int) -> Tensor:
        batches = self.images.batches
        chosen = evenly(images, count)
        square = images.fetch_square(chosen, batches.preprocessing.image_size)
        pixels, _ = split_labels(square, images.labels.cpu()[chosen])
        normalised = batches.preprocessing.normalise(pixels.to(batches.device))
        convert = self._conversion(teacher)
        return normalised if convert is None else convert(normalised)

    def _note(self, *notes: str) -> None:
        for note in notes:
            log(f"  {self.name}: {note}")
        self._notes += notes
