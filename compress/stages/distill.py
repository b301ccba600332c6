"""One student, trained by one method: main training, phases before and after it, the artefact."""

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.accounting.memory import peak_step_bytes
from compress.comparison.predictions import PREDICTIONS
from compress.console.messages import log
from compress.data import Batch, Dataset, conversion, evenly, split_labels
from compress.distill.module import Distillation
from compress.distill.trainings import Trainings, phase_folder
from compress.engine.lockstep import drain
from compress.engine.loop import History, Position, autocast
from compress.engine.optimization import TrainSettings
from compress.methods import find_method
from compress.methods.contract import LossWeights, Phase
from compress.model_files import artifacts
from compress.recipe.schema import Distill, MethodPart, Recipe, Weights
from compress.seeding import seeded
from compress.stages import (
    References,
    dataset_of,
    evaluate,
    judge,
    read_references,
    save_predictions,
    selection_of,
    settings_from,
    summary,
    task_of,
)
from compress.stages.inputs import StudentInputs
from compress.stages.job import Job, Outcome
from compress.stages.student import build_student, describe_student
from compress.stages.teacher import load_teachers, preprocessing_of, teacher_folders
from compress.storage.files import write_json
from compress.storage.fingerprints import fingerprint_of
from compress.storage.integrity import seal

RESULT_VERSION = 4
IN_EVERY_PROCESS = True


def terms_for(part: MethodPart, recipe: Recipe) -> LossWeights:
    """The weights of a method: those of the published protocol where the recipe gives no other.

    `distill.weights` is for the method that ships; a method beside it has its own `weights`. Where
    the task has no classes, there is nothing for hard labels and soft targets to weigh.
    """
    distill = recipe.distill
    terms = find_method(part.name).needs(part.arguments).protocols[distill.protocol]
    if not task_of(recipe).has_classes:
        terms = replace(terms, ce=0, kd=0)
    overrides = weights_given(part, distill)
    return terms if overrides is None else replace(terms, **overrides.model_dump(exclude_none=True))


def reads_teachers(part: MethodPart, recipe: Recipe) -> bool:
    """Whether a method's terms of weight, or its phases, read a teacher."""
    needs = find_method(part.name).needs(part.arguments)
    return terms_for(part, recipe).kd != 0 or bool(needs.teacher_taps)


def weights_given(part: MethodPart, distill: Distill) -> Weights | None:
    """The weights that the recipe gives a method."""
    return part.weights or (distill.weights if part is distill.method else None)


def files(folder: Path, values: Mapping[str, Any]) -> dict[str, str | None]:
    """The student, its predictions and the histories of its trainings.

    With the digest that `values` holds. Runs made before predictions were saved have none.
    """
    histories = sorted(p.relative_to(folder).as_posix() for p in folder.glob("**/metrics.jsonl"))
    predictions = [PREDICTIONS] if (folder / PREDICTIONS).is_file() else []
    student = {"student.safetensors": values.get("sha256"), "student.json": None}
    return student | dict.fromkeys([*predictions, *histories])


def run(job: Job) -> Outcome:
    """Train the student that `job.arguments` names: {"part": MethodPart, "label", "trial"}."""
    return drain(learn(job))


def learn(job: Job) -> Generator[Position, None, Outcome]:
    """`run`, stopping before each step: jobs with common `lockstep_values` can take turns."""
    recipe, trial = job.recipe, job.arguments["trial"]
    part: MethodPart = job.arguments["part"]
    data = dataset_of(recipe, job.device)
    seed = recipe.seed + trial
    teachers = load_teachers(job.run_folder)
    weights = terms_for(part, recipe)
    inputs = StudentInputs(job, data, teachers, weights)
    student, method = build_student(job, data, seed, teachers, len(inputs.batches))
    task = task_of(recipe)
    with seeded(seed, "student", "auxiliary head"):
        head = task.auxiliary(method.context.student)
    module = Distillation(
        student,
        [teacher.network.to(job.device) for teacher in teachers],
        method,
        weights,
        task,
        kd_temperature=recipe.distill.kd_temperature,
        inputs=[conversion(data.preprocessing, preprocessing_of(teacher)) for teacher in teachers],
        auxiliary=head,
    ).to(job.device)
    for note in method.notes():
        log(f"  {job.name}: {note}")
    is_bare = method.ship(student) is student
    description = describe_student(job, data, is_bare, method, weights)
    after = method.phases_after()
    if after:
        description["trained_in"] = phase_folder(after[-1])
    # Written before the first step: an interrupted training can be exported.
    write_json(job.folder / "description.json", seal(description))
    references = read_references(teacher_folders(job.run_folder))
    training = _Distilling(job, module, inputs, data, references)
    histories, terms = yield from training.run()
    results = summary(histories[-1], task)
    if len(histories) > 1:
        results["main_training"] = summary(histories[0], task)
    shipped = method.ship(student)
    results |= judge(shipped, data, job)
    log(f"  {job.name}: {task.describe(results)} on {len(data.test)} test images")
    description["metrics"] = {k: v for k, v in results.items() if "percent" in k}
    digest = artifacts.save(job.folder, "student", shipped, description)
    save_predictions(shipped, data, job, job.folder)
    values = {
        "label": job.arguments["label"],
        "trial": trial,
        "seed": seed,
        **description["distillation"],
        "terms": terms,
        "test_images": len(data.test),
        **results,
        "sha256": digest,
    }
    return Outcome(values, {"teaching": inputs.ensemble.notes(), "memory": training.memory})


@dataclass
class _Distilling:
    """The trainings of one student, and what is measured of the method's own terms in between."""

    job: Job
    module: Distillation
    inputs: StudentInputs
    data: Dataset
    references: References
    memory: dict[str, int] = field(default_factory=dict)

    def run(
        self,
    ) -> Generator[Position, None, tuple[list[History], dict[str, dict[str, float | None]]]]:
        """The history of the main training and of judged phases after it, and the terms."""
        settings = settings_from(self.job.recipe.distill.train)
        fixed = _fixed_batch(self.data, self.module, settings.batch_size, self.job)
        terms = {"initial": self._measure(fixed)}

        def before_main() -> None:
            terms["start"] = self._measure(fixed)
            self._measure_memory(settings)

        def after_main() -> None:
            if self.job.device.type == "cuda":
                peak = torch.cuda.max_memory_allocated(self.job.device)
                self.memory["device_peak_bytes"] = peak
            terms["end"] = self._measure(fixed)

        trainings = Trainings(
            module=self.module,
            batches=self.inputs.batches,
            main_batches=self.inputs.main_batches,
            settings=settings,
            directory=self.job.folder,
            role=self.job.name,
            seed=self._seed,
            device=self.job.device,
            fingerprint=fingerprint_of(self.job.fields),
            begin=self._begin,
            evaluate=partial(
                _evaluate_all, data=self.data, job=self.job, references=self.references
            ),
            keep_best=selection_of(task_of(self.job.recipe), self.data),
            before_main=before_main,
            after_main=after_main,
        )
        histories = yield from trainings.run()
        return histories, terms

    @property
    def _seed(self) -> int:
        seed: int = self.job.recipe.seed + self.job.arguments["trial"]
        return seed

    def _begin(self, phase: Phase | None) -> None:
        inputs, module = self.inputs, self.module
        student = inputs.student_forward(module, phase)
        teachers = inputs.teacher_forwards(module, phase)
        with seeded(self._seed, self.job.name, "probe"):
            module.begin_phase(phase, inputs.probe, student=student, teachers=teachers)

    def _measure(self, batch: Batch) -> dict[str, float | None]:
        with seeded(self._seed, self.job.name, "measure"):
            return self.module.measure(batch)

    def _measure_memory(self, settings: TrainSettings) -> None:
        """Bytes of a step's tensors and of the method's state; the device's peak starts anew."""
        # A batch of the last epoch: by then every term has begun.
        batch = replace(self.inputs.probe.split(settings.accumulate)[0], epoch=settings.epochs - 1)
        device = self.job.device
        with seeded(self._seed, self.job.name, "memory"), autocast(device, settings.precision):
            step = step_bytes(self.module, batch)
        state = self.module.method_bytes()
        self.memory = {"step_bytes": step, "method_bytes": state, "batch": len(batch.index)}
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)


def _evaluate_all(
    networks: Mapping[str, nn.Module], data: Dataset, job: Job, references: References
) -> dict[str, float]:
    """Metrics of several networks, each under the task's names and its own ending."""
    return {
        f"{key}{ending}": value
        for ending, network in networks.items()
        for key, value in evaluate(network, data, job, references).items()
    }


def step_bytes(module: Distillation, batch: Batch) -> int:
    """Most bytes of tensors alive at once in forward and backward of a batch.

    Parameters, buffers and the batch are not counted. It is that of the networks themselves, eager
    and not cached, whatever gives the taps. Every state is left as it was.
    """
    with module.rehearsal():
        return peak_step_bytes(partial(module.backward, batch), module.resident_tensors(batch))


def _fixed_batch(data: Dataset, module: Distillation, size: int, job: Job) -> Batch:
    """Images without augmentation on which a method's term is measured, evenly over their split.

    Those of the test split, each with the index of a training image of its class; a method, or a
    teacher, that knows training images by their index has no term on others, and gets training
    images. Each view of them is turned as the method's is.
    """
    images = data.train if module.knows_images else data.test
    chosen = evenly(images, size)
    labels = images.labels.cpu()[chosen]
    of_class = {int(label): i for i, label in enumerate(data.train.labels.cpu())}
    same_class = torch.tensor([of_class[int(label)] for label in labels])
    square = images.fetch_square(chosen, data.preprocessing.image_size)
    rgb, labels = split_labels(square, labels)
    pixels = data.preprocessing.normalise(rgb.to(job.device))
    views = [view.image_view("none") for view in module.method.views]
    return Batch(
        images=tuple(view.turn(pixels) for view in views),
        view_ids=(torch.zeros_like(chosen).to(job.device),) * len(views),
        labels=labels.to(job.device),
        index=(chosen if module.knows_images else same_class).to(job.device),
        epoch=0,
        step=0,
    )
