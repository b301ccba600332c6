"""Distillation with networks and a DataLoader of one's own: train, evaluate, export."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from compress.console.messages import log
from compress.data import Dataset, Preprocessing
from compress.distill.module import Distillation
from compress.distill.trainings import Trainings, build_method
from compress.distiller.loader import (
    Expected,
    LoaderBatches,
    evaluation_pairs,
    loader_notes,
    memory_images,
    read_labels,
)
from compress.distiller.preparation import (
    ROLE,
    Prepared,
    architecture_of,
    batch_size_of,
    check_method,
    class_names_of,
    digest_of,
    import_path,
    look_at,
    validated,
)
from compress.distributed.collectives import world_size
from compress.engine.lockstep import drain
from compress.engine.loop import History
from compress.errors import UserError
from compress.methods import find_method
from compress.methods.contract import LossWeights, MethodContext, TeacherContext, teacher_context
from compress.model_files import artifacts
from compress.recipe.schema import Export, Train
from compress.stages import settings_from, summary
from compress.storage.fingerprints import fingerprint_of
from compress.tasks import Classification
from export.bundle.contents import OF_A_LOADER
from export.bundle.request import BundleRequest
from export.bundle.writer import write_bundle
from export.verify.command import verify_bundle

Loader = DataLoader[Any]


class Losses(NamedTuple):
    """Of a batch: the loss (), and the weighted terms that it is the sum of."""

    total: Tensor
    terms: dict[str, Tensor]


class Distiller:
    """A student that learns from teachers by a method, on batches of a DataLoader.

    A batch is (images, labels) or (images, labels, index). Images are float32 (N, 3, S, S),
    normalised by the mean and std of `preprocessing`, or uint8 of that shape, which are normalised
    here; for a method that reads several views of each image a tuple of such. Labels (N,) are class
    numbers from 0, the index (N,) is the image's place in the loader's data set.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module | Sequence[nn.Module],
        method: str = "simkd",
        *,
        classes: int | Sequence[str],
        preprocessing: Preprocessing,
        arguments: Mapping[str, Any] | None = None,
        protocol: str = "simkd",
        weights: LossWeights | None = None,
        kd_temperature: float = 4.0,
        architecture: str | Mapping[str, Any] | None = None,
        student_taps: Mapping[str, Any] | None = None,
        teacher_taps: Mapping[str, Any] | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        """Check that all of it fits together.

        Args:
            student: gives logits (N, K) of normalised images; it is trained in place.
            teacher: one or several of the same K; put in eval mode and frozen, never changed.
            method: a name of `compress.methods.METHODS`, or a class of your own as FILE.py:CLASS or
                package.module:CLASS.
            classes: their names, or their number K.
            preprocessing: the image size S, and how the loader normalises. The bundle tells it to
                those who use the student, so it must be what the loader does.
            arguments: the method's own, as in a recipe.
            protocol: whose published `weights` of the terms are taken, where none are given.
            kd_temperature: T of the soft term beside a method's own.
            architecture: the name, or {"name": ..., arguments}, by which a recipe would build the
                student ("resnet8", "my_networks:small"); a bundle's student.json can then be
                rebuilt. Without it, its code is only named there.
            student_taps: `stages` and `last_map` by dotted module paths, as a recipe's `taps`:
                where the feature maps that a method reads are not found, or others are meant.
            teacher_taps: the same of the teachers.
            seed: of what a method draws and of the loader's order.
            device: default: the student's.

        Raises:
            UserError: a name is unknown, or the networks give other shapes.
        """
        if world_size() > 1:
            raise UserError("Distiller trains in one process; use a recipe with torchrun")
        if not isinstance(preprocessing, Preprocessing):
            raise UserError(
                f"preprocessing is a {type(preprocessing).__name__}; expected "
                "compress.data.Preprocessing(image_size, mean, std)"
            )
        check_method(method, arguments or {}, protocol)
        self.student = student
        self.teachers = [teacher] if isinstance(teacher, nn.Module) else list(teacher)
        self.method_name, self.arguments = method, dict(arguments or {})
        self.class_names = class_names_of(classes)
        self.preprocessing = preprocessing
        self.kd_temperature = kd_temperature
        self.seed = seed
        self.device = torch.device(device or next(student.parameters()).device)
        needs = find_method(method).needs(self.arguments)
        self.weights = weights or needs.protocols[protocol]
        self._task = Classification()
        known = len(self.class_names)
        for network in (student, *self.teachers):
            network.to(self.device)
        own, their = dict(student_taps or {}), dict(teacher_taps or {})
        self._specs = look_at(student, "the student", preprocessing, own, learns=True)
        self._contexts = [_teacher_context(one, preprocessing, their) for one in self.teachers]
        gives = {"student": self._specs.num_classes} | {
            f"teacher{f' {i}' if len(self.teachers) > 1 else ''}": context.taps.num_classes
            for i, context in enumerate(self._contexts, start=1)
        }
        if wrong := {who: width for who, width in gives.items() if width != known}:
            listed = ", ".join(f"the {who} gives {width} logits" for who, width in wrong.items())
            raise UserError(
                f"there are {known} classes, but {listed}; give networks of these classes"
            )
        self._architecture = architecture_of(student, architecture, known)
        self._is_rebuilt = architecture is not None
        self._learning = {p: p.requires_grad for p in student.parameters()}
        self._method_class = find_method(method)
        self._expected = Expected(
            preprocessing,
            known,
            len(needs.views),
            self._method_class.knows_images or self._method_class.reads_index,
            method,
        )
        self._prepared: Prepared | None = None
        self._history: History = []

    def fit(
        self,
        train_loader: Loader,
        *,
        epochs: int,
        directory: str | Path,
        lr: float = 0.05,
        test_loader: Loader | None = None,
        labels: Tensor | None = None,
        **settings: Any,
    ) -> History:
        """Train as a recipe's distill stage does; return a row per epoch, with loss and terms.

        A fit that was interrupted goes on in the same directory after its last whole epoch, bit for
        bit on a CPU if augmentation draws from torch's generators. One that is done is loaded.

        Args:
            directory: gets the checkpoint and metrics.jsonl. What another training left there is
                put aside.
            test_loader: on which the student is evaluated after each epoch, and the teacher before.
            labels: (M,) of the training set, for methods that read them all; without it every image
                is read once.
            settings: other keys of a recipe's `train`: optimizer, momentum, nesterov, weight_decay,
                schedule, accumulate, precision.

        Raises:
            UserError: a loader gives something else than `Distiller` says, or lacks what the method
                reads; or a key is unknown.
        """
        train = validated(
            Train,
            {"epochs": epochs, "lr": lr, **settings, "batch_size": batch_size_of(train_loader)},
        )
        run = self._prepared = self._prepare(train_loader, epochs, labels, train.model_dump())
        for note in [
            *run.module.method.notes(),
            *loader_notes(train_loader, run.module.method.views),
        ]:
            log(f"  {ROLE}: {note}")
        if test_loader is not None:
            for row in self._teacher_rows(test_loader):
                weak = f", it {row['weakness']}" if row["weakness"] else ""
                log(f"  {row['model']}, teacher: {self._task.describe(row)}{weak}")

        def evaluate(networks: Mapping[str, nn.Module]) -> dict[str, float]:
            assert test_loader is not None
            results = {ending: self.evaluate(test_loader, n) for ending, n in networks.items()}
            return {f"{k}{end}": v for end, row in results.items() for k, v in row.items()}

        trainings = Trainings(
            module=run.module,
            batches=run.batches,
            main_batches=run.batches,
            settings=settings_from(train),
            directory=Path(directory),
            role=ROLE,
            seed=self.seed,
            device=self.device,
            fingerprint=run.fingerprint,
            begin=run.begin,
            evaluate=None if test_loader is None else evaluate,
        )
        try:
            self._history = drain(trainings.run())[-1]
        finally:
            self._unfreeze()
        return self._history

    def prepare(self, train_loader: Loader, *, epochs: int, labels: Tensor | None = None) -> None:
        """Build the method for a loop of one's own; the arguments are those of `fit`.

        Then, for each batch: `losses`, its backward pass, a step of an optimiser of
        `parameters()`, and `after_step`.

        Raises:
            UserError: as `fit`; or the method needs more than one loop with one optimiser.
        """
        run = self._prepare(train_loader, epochs, labels, {"loop": "own"})
        method = run.module.method
        if [*method.phases(), *method.phases_after()]:
            raise UserError(f"{self.method_name} trains in several phases; use fit")
        if method.parameter_groups():
            raise UserError(f"{self.method_name} has optimiser settings of its own; use fit")
        run.begin(None)
        self._prepared, self._history = run, []

    def losses(self, images: Any, labels: Tensor, index: Tensor | None = None) -> Losses:
        """The loss of a batch, see `Distiller`; the networks are put in their modes for training.

        Epoch and step are counted by `after_step`.
        """
        run = self._ready()
        item = (images, labels) if index is None else (images, labels, index)
        run.module.train()
        terms = run.module(run.batches.batch(item, *divmod(run.steps, len(run.batches))))
        return Losses(torch.stack([*terms.values()]).sum(), terms)

    def after_step(self) -> None:
        """Move the method's banks and averages: call it after each step of the optimiser."""
        run = self._ready()
        run.module.after_step()
        run.steps += 1

    def parameters(self) -> list[nn.Parameter]:
        """What learns: the student's parameters that a term reaches, and the method's own."""
        return [p for p in self.module.parameters() if p.requires_grad]

    @property
    def module(self) -> Distillation:
        """Student and method as one module, whose `state_dict` is all that a checkpoint needs."""
        return self._ready().module

    def deploy(self) -> nn.Module:
        """The network that ships, in eval mode: normalised images (N, 3, S, S) -> logits (N, K).

        The student, or what the method puts together of it and of its own parts, with which it
        shares parameters.
        """
        return self.module.method.ship(self.student).eval()

    def evaluate(self, loader: Loader, network: nn.Module | None = None) -> dict[str, float]:
        """{"top1_percent": ...} of the network that ships, or of another, such as the teacher.

        Raises:
            UserError: the loader gives something else than `Distiller` says.
        """
        network = self.deploy() if network is None else network
        return self._task.evaluate(network, evaluation_pairs(loader, self._expected, self.device))

    def export_bundle(
        self,
        folder: str | Path,
        *,
        test_loader: Loader,
        calibration_loader: Loader | None = None,
        about: str = "images of a DataLoader",
        **settings: Any,
    ) -> dict[str, Any]:
        """Write the bundle of a recipe's export stage, all of it or nothing.

        Every ONNX file is compared with the trained network on the test images, which are held in
        memory as 8-bit pixels.

        Args:
            folder: must not exist.
            calibration_loader: whose first images calibrate the int8 file; best not augmented.
                Default: the loader of the training.
            about: the data, for the model card.
            settings: keys of a recipe's `export`: int8 (None: no int8 file), raw_pixels, opset,
                tolerance, license.

        Returns:
            Size, parity and accuracy of the files; `int8_refused` says why there is no int8 file.

        Raises:
            UserError: the folder exists, the network cannot be exported, or a file differs from it.
        """
        run, folder = self._ready(), Path(folder)
        export = validated(Export, settings)
        if folder.exists():
            raise UserError(f"{folder} is there already; give a folder that is not")
        images = export.int8.calibration_images if export.int8 is not None else 1
        data = self._dataset(calibration_loader or run.batches.loader, images, test_loader)
        metrics = self.evaluate(test_loader)
        shipped = copy.deepcopy(self.deploy()).cpu()
        description = run.describe(bare=run.module.method.ship(self.student) is self.student)
        description["metrics"] = metrics
        training = {
            **(summary(self._history, self._task) if self._history else {}),
            **metrics,
            "test_images": len(data.test),
            "seed": self.seed,
        }
        if not self._is_rebuilt:
            log(
                f"  student.json names {self._architecture['name']}, which is not in the bundle; "
                "give `architecture` where it must be rebuilt (the ONNX files need no code)"
            )
        folder.parent.mkdir(parents=True, exist_ok=True)
        values, _ = write_bundle(
            BundleRequest(
                name=description["label"],
                student=artifacts.Student(shipped, description),
                data=data,
                data_section={"name": OF_A_LOADER, "about": about, "test_images": len(data.test)},
                settings=export,
                training=training if self._history else {},
                teachers=self._teacher_rows(test_loader),
                plain=copy.deepcopy(self.student).cpu(),
            ),
            folder,
        )
        return values

    def verify(self, folder: str | Path, *, test_loader: Loader) -> dict[str, Any]:
        """What `python -m export.verify` says of a bundle, compared on the images of a loader.

        Its student is rebuilt from its own files, so `architecture` must have been given.

        Returns:
            The report; `failures` has a sentence for each limit that is exceeded.

        Raises:
            UserError: a file is missing or changed, or the student cannot be rebuilt.
        """
        if not self._is_rebuilt:
            raise UserError(
                "verify rebuilds the student from its files, which needs `architecture`, the name "
                "that builds it; export_bundle compared each ONNX file when it wrote them"
            )
        return verify_bundle(Path(folder), dataset=self._dataset(test_loader, 1, test_loader))

    def _dataset(self, train: Loader, train_images: int, test: Loader) -> Dataset:
        """The first images of a training loader and all of a test loader, in memory."""
        return Dataset(
            train=memory_images(train, self._expected, train_images),
            validation=None,
            test=memory_images(test, self._expected, None),
            class_names=self.class_names,
            preprocessing=self.preprocessing,
            augment="none",
        )

    def _ready(self) -> "Prepared":
        if self._prepared is None:
            raise UserError("call fit, or prepare for a loop of your own, first")
        return self._prepared

    def _teacher_rows(self, loader: Loader) -> list[dict[str, Any]]:
        """Of each teacher its class, its accuracy, and what is wrong where it is at chance."""
        rows, known = [], len(self.class_names)
        for teacher in self.teachers:
            results = self.evaluate(loader, teacher)
            images = len(loader.dataset)  # type: ignore[arg-type]
            weak = self._task.weakness(results, None, num_classes=known, images=images)
            rows.append({"model": type(teacher).__name__, **results, "weakness": weak})
        return rows

    def _unfreeze(self) -> None:
        """Give the student's parameters back what a training froze of them."""
        for parameter, learns in self._learning.items():
            parameter.requires_grad_(learns)

    def _prepare(
        self, loader: Loader, epochs: int, labels: Tensor | None, fields: Mapping[str, Any]
    ) -> "Prepared":
        """Everything for a training on a loader, in the state before its first step."""
        self._unfreeze()
        batches = LoaderBatches(loader, self._expected, self.device, seed=self.seed)
        probe = batches.first(self.seed, ROLE, 0)
        size = len(loader.dataset)  # type: ignore[arg-type]
        if labels is None and self._method_class.knows_images:
            labels = read_labels(loader, self._expected, self.seed)
        if labels is not None and (len(labels) != size or labels.is_floating_point()):
            raise UserError(
                f"labels has {len(labels):,} numbers of {labels.dtype}; expected the class numbers "
                f"of the {size:,} training images"
            )
        batches.labels = labels = None if labels is None else labels.cpu().long()
        context = MethodContext(
            student=self._specs,
            teachers=tuple(self._contexts),
            num_classes=len(self.class_names),
            train_size=size,
            labels=torch.zeros(0, dtype=torch.long) if labels is None else labels,
            batch_size=batch_size_of(loader),
            steps_per_epoch=len(batches),
            epochs=epochs,
        )
        shape = self.preprocessing.input_shape
        name, arguments = self.method_name, self.arguments
        try:
            method = build_method(name, arguments, context, self.student, shape, seed=self.seed)
        except ValueError as error:
            specs = {"student": self._specs, "teacher": self._contexts[0].taps}
            lacking = [who for who, taps in specs.items() if not (taps.stages and taps.last_map)]
            hint = "".join(
                f'; if it has feature maps, name their modules: {who}_taps={{"stages": [...], '
                '"last_map": ...}'
                for who in lacking
            )
            raise UserError(f"{name}: {error}{hint}") from None
        module = Distillation(
            self.student,
            self.teachers,
            method,
            self.weights,
            self._task,
            kd_temperature=self.kd_temperature,
        ).to(self.device)
        named = {"name": name, **arguments}
        identity = {
            "student": self._specs.as_dict(),
            "teachers": [digest_of(network) for network in self.teachers],
            "method": named,
            "weights": asdict(self.weights),
            "kd_temperature": self.kd_temperature,
            "classes": self.class_names,
            "preprocessing": self.preprocessing.as_dict(),
            "images": size,
            "steps": len(batches),
            "train": fields,
        }
        fingerprint = fingerprint_of(identity)

        def describe(*, bare: bool) -> dict[str, Any]:
            return artifacts.describe_distilled(
                self._architecture,
                method,
                named,
                self.class_names,
                self.preprocessing,
                weights=asdict(self.weights),
                bare=bare,
                fingerprint=fingerprint,
                label=name,
            )

        return Prepared(module, batches, probe, fingerprint, describe, self.seed)


def _teacher_context(
    network: nn.Module, preprocessing: Preprocessing, paths: Mapping[str, Any]
) -> TeacherContext:
    taps = look_at(network, "the teacher", preprocessing, paths, learns=False)
    architecture = {"name": import_path(network), "arguments": {}}
    source = {"architecture": architecture, "code": None, "method": None}
    return teacher_context(network, taps, source)
