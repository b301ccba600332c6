"""One student, trained by one method: the phases, the main training, the artefact."""

from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn

from compress import deployment, models
from compress.artifacts import Job, Outcome, write_json
from compress.console import log
from compress.data import Dataset, ImageBatches, evenly
from compress.data.batches import Batch
from compress.distillation import Distillation, teacher_context
from compress.errors import UserError
from compress.methods import METHODS
from compress.methods.base import Context, Method, Terms
from compress.randomness import seeded
from compress.recipe import Distill, MethodPart
from compress.stages import dataset_of, judge, order_seed, settings_from, summary, task_of
from compress.stages.teacher import load_initial, load_teachers
from compress.tap_discovery import discover
from compress.taps import TapSpecs
from compress.training import constant, train

RESULT_VERSION = 2


def terms_for(part: MethodPart, distill: Distill) -> Terms:
    """The weights of a method: those of the published protocol where the recipe gives no other.

    `distill.weights` is for the method that ships; a method beside it has its own `weights`.
    """
    terms = METHODS[part.name].protocols[distill.protocol]
    given = part.weights or (distill.weights if part is distill.method else None)
    return terms if given is None else replace(terms, **given.model_dump(exclude_none=True))


def run(job: Job) -> Outcome:
    """Train the student that `job.arguments` names: {"part": MethodPart, "label", "trial"}."""
    recipe, trial = job.recipe, job.arguments["trial"]
    part: MethodPart = job.arguments["part"]
    data = dataset_of(recipe, job.device)
    seed = recipe.seed + trial
    settings = settings_from(recipe.distill.train)
    batches = ImageBatches(
        data.train,
        data.preprocessing,
        batch_size=settings.batch_size,
        augment=[view.augment or data.augment for view in METHODS[part.name].views],
        seed=order_seed(recipe, trial),
        device=job.device,
        workers=job.workers,
    )
    teachers = load_teachers(job.run_folder)
    student, method = _build(job, data, seed, teachers, len(batches))
    task = task_of(recipe)
    weights = terms_for(part, recipe.distill)
    module = Distillation(
        student,
        [teacher.network.to(job.device) for teacher in teachers],
        method,
        weights,
        task,
        kd_temperature=recipe.distill.kd_temperature,
    ).to(job.device)
    for remark in method.remarks():
        log(f"  {job.name}: {remark}")
    deployed = method.deploy(student)
    description = _describe(job, data, deployed is student, method, weights)
    # Written before the first step: an interrupted training can be exported.
    write_json(job.folder / "description.json", description)
    history, terms = _train(job, module, batches, data, deployed)
    found = summary(history, task.metric)
    log(f"  {job.name}: {found[task.metric]:.2f} % on {len(data.test)} test images")
    description["metrics"] = {k: v for k, v in found.items() if "percent" in k}
    digest = deployment.save(job.folder, "student", deployed, description)
    values = {
        "label": job.arguments["label"],
        "trial": trial,
        "seed": seed,
        **description["distillation"],
        "terms": terms,
        "test_images": len(data.test),
        **found,
        "sha256": digest,
    }
    return Outcome(values, {})


def _train(
    job: Job, module: Distillation, batches: ImageBatches, data: Dataset, deployed: nn.Module
) -> tuple[list[dict[str, Any]], dict[str, dict[str, float | None]]]:
    """The phases, then the main training; its history, and the method's own terms over it."""
    settings = settings_from(job.recipe.distill.train)
    seed = job.recipe.seed + job.arguments["trial"]
    metric = task_of(job.recipe).metric
    probe = next(iter(batches.epoch(0)))
    fixed = _fixed_batch(data, module.method, settings.batch_size, job)
    terms: dict[str, dict[str, float | None]] = {}

    def measure(moment: str) -> None:
        with seeded(seed, job.name, "measure"):
            terms[moment] = module.measure(fixed)

    measure("initial")
    for phase in module.method.phases():
        with seeded(seed, job.name, "probe"):
            module.enter(phase, probe)
        train(
            module,
            batches,
            replace(settings, epochs=phase.epochs, lr=phase.lr or settings.lr, schedule=constant()),
            directory=job.folder / f"phase-{phase.name}",
            role=f"{job.name} {phase.name}",
            seed=seed,
            device=job.device,
        )
    with seeded(seed, job.name, "probe"):
        module.enter(None, probe)
    measure("start")
    history = train(
        module,
        batches,
        settings,
        directory=job.folder,
        role=job.name,
        seed=seed,
        device=job.device,
        evaluate=lambda: judge(deployed, data, job),
        keep_best=f"validation_{metric}" if data.validation else None,
    )
    measure("end")
    return history, terms


def _fixed_batch(data: Dataset, method: Method, size: int, job: Job) -> Batch:
    """Images without augmentation on which a method's term is measured, evenly over their split.

    Those of the test split, each with the index of a training image of its class; a method that
    knows its training images by their index has no term on others, and gets training images.
    """
    images = data.train if method.knows_images else data.test
    chosen = evenly(images, size)
    labels = images.labels.cpu()[chosen]
    of_class = {int(label): i for i, label in enumerate(data.train.labels.cpu())}
    same_class = torch.tensor([of_class[int(label)] for label in labels])
    pixels = data.preprocessing.normalise(images.fetch(chosen).to(job.device))
    views = len(method.views)
    return Batch(
        images=(pixels,) * views,
        view_ids=(torch.zeros_like(chosen).to(job.device),) * views,
        labels=labels.to(job.device),
        index=(chosen if method.knows_images else same_class).to(job.device),
        epoch=0,
        step=0,
    )


def _build(
    job: Job, data: Dataset, seed: int, teachers: list[deployment.Student], steps_per_epoch: int
) -> tuple[nn.Module, Method]:
    recipe = job.recipe
    part: MethodPart = job.arguments["part"]
    model = recipe.student.model
    classes = len(data.class_names)
    student = models.build(
        model.name, num_classes=classes, seed=seed, role="student", **model.arguments
    )
    shape, taps = data.preprocessing.input_shape, recipe.student.taps
    specs = discover(student, shape, model.name, **taps.model_dump())
    given = recipe.student.weights
    if given is not None:
        load_initial(student, model.name, given, data)
    context = Context(
        student=specs,
        teachers=tuple(
            teacher_context(t.network, TapSpecs.from_dict(t.description["taps"])) for t in teachers
        ),
        num_classes=classes,
        train_size=len(data.train),
        labels=data.train.labels.cpu(),
        batch_size=recipe.distill.train.batch_size,
        steps_per_epoch=steps_per_epoch,
        epochs=recipe.distill.train.epochs,
    )
    try:
        with seeded(seed, "method", part.name):
            return student, METHODS[part.name](context, **part.arguments)
    except ValueError as error:
        raise UserError(f"distill.{part.name}: {error}") from None


def _describe(
    job: Job, data: Dataset, bare: bool, method: Method, weights: Terms
) -> dict[str, Any]:
    """What the student's file says of itself; its metrics are still to come."""
    model = job.recipe.student.model
    part: MethodPart = job.arguments["part"]
    description = deployment.describe(
        {"name": model.name, "arguments": model.arguments},
        method.context.student,
        data.class_names,
        data.preprocessing,
        metrics={},
        fingerprint=job.recipe_fingerprint,
    )
    distillation = {
        "method": {"name": part.name, **part.arguments},
        "weights": asdict(weights),
    }
    return description | {
        "label": job.arguments["label"],
        "trial": job.arguments["trial"],
        "distillation": distillation,
        "method": None if bare else deployment.describe_method(method, part.name, part.arguments),
        "encoder_prefix": "" if bare else "encoder.",
    }
