"""One student, trained by one method: the phases, the main training, the artefact."""

from typing import Any

import torch
from torch import nn

from compress import deployment, models
from compress.artifacts import Job, Outcome
from compress.console import log
from compress.data import Dataset, ImageBatches
from compress.distillation import Distillation, teacher_context
from compress.errors import UserError
from compress.methods import METHODS
from compress.methods.base import Context, Method, Terms
from compress.randomness import seeded
from compress.recipe import Distill, MethodPart
from compress.stages import dataset_of, judge, order_seed, settings_from, summary
from compress.stages.teacher import load_initial, load_teachers
from compress.taps import discover
from compress.tasks import Classification
from compress.training import Settings, constant, train

RESULT_VERSION = 1


def terms_for(part: MethodPart, distill: Distill) -> Terms:
    """The weights of a method: its own, the recipe's, or those of the published protocol.

    `distill.weights` is for the method that ships; a method beside it has its own `weights`.
    """
    given = part.weights or (distill.weights if part is distill.method else None)
    if given is not None:
        return Terms(given.ce, given.kd, given.method)
    return METHODS[part.name].protocols[distill.protocol]


def run(job: Job) -> Outcome:
    """Train the student that `job.arguments` names: {"part": MethodPart, "label", "trial"}."""
    recipe, trial = job.recipe, job.arguments["trial"]
    part: MethodPart = job.arguments["part"]
    data = dataset_of(recipe)
    seed = recipe.seed + trial
    student, method = _build(job, part, data, seed)
    task = Classification()
    weights = terms_for(part, recipe.distill)
    module = Distillation(
        student,
        [t.to(job.device) for t in load_teachers(job.run_folder)],
        method,
        weights,
        task,
        kd_temperature=recipe.distill.kd_temperature,
    ).to(job.device)
    deployed = method.deploy(student)
    settings = settings_from(recipe.distill.train)
    batches = ImageBatches(
        data.train,
        data.preprocessing,
        batch_size=settings.batch_size,
        augment=[view.augment or data.augment for view in method.views],
        seed=order_seed(recipe, trial),
        device=job.device,
        workers=job.workers,
    )
    probe = next(iter(batches.epoch(0)))
    for phase in method.phases():
        module.enter(phase, probe)
        train(
            module,
            batches,
            Settings(
                phase.epochs,
                phase.lr or settings.lr,
                settings.batch_size,
                settings.optimizer,
                settings.momentum,
                settings.nesterov,
                settings.weight_decay,
                constant(),
            ),
            directory=job.folder / f"phase-{phase.name}",
            role=f"{job.name} {phase.name}",
            seed=seed,
            device=job.device,
        )
    with seeded(seed, job.name, "probe"):
        module.enter(None, probe)
    history = train(
        module,
        batches,
        settings,
        directory=job.folder,
        role=job.name,
        seed=seed,
        device=job.device,
        evaluate=lambda: judge(deployed, data, job),
        keep_best=f"validation_{task.metric}" if data.validation else None,
    )
    found = summary(history, task.metric)
    log(f"  {job.name}: {found[task.metric]:.2f} % on {len(data.test)} test images")
    values = {
        "label": job.arguments["label"],
        "trial": trial,
        "seed": seed,
        "method": {"name": part.name, **part.arguments},
        "weights": {"ce": weights.ce, "kd": weights.kd, "method": weights.method},
        "test_images": len(data.test),
        **found,
    }
    _save(job, data, student, deployed, method, values)
    return Outcome(values, {})


def _build(job: Job, part: MethodPart, data: Dataset, seed: int) -> tuple[nn.Module, Method]:
    recipe = job.recipe
    shape = data.preprocessing.input_shape
    model = recipe.student.model
    student = models.build(
        model.name, num_classes=len(data.class_names), seed=seed, **model.arguments
    )
    specs = discover(student, shape, model.name)
    given = recipe.student.checkpoint or recipe.student.weights
    if given is not None:
        load_initial(student, model.name, given, data)
    names = [t.model.name if t.model else str(t.checkpoint) for t in recipe.teacher]
    contexts = [
        teacher_context(network, discover(network, shape, name))
        for network, name in zip(load_teachers(job.run_folder), names, strict=True)
    ]
    batch_size = recipe.distill.train.batch_size
    context = Context(
        student=specs,
        teachers=tuple(contexts),
        num_classes=len(data.class_names),
        labels=data.train.labels,
        batch_size=batch_size,
        steps_per_epoch=-(-len(data.train) // batch_size),
        epochs=recipe.distill.train.epochs,
    )
    try:
        with seeded(seed, "method", part.name):
            return student, METHODS[part.name](context, **part.arguments)
    except ValueError as error:
        raise UserError(f"distill.{part.name}: {error}") from None


def _save(
    job: Job,
    data: Dataset,
    student: nn.Module,
    deployed: nn.Module,
    method: Method,
    values: dict[str, Any],
) -> None:
    model = job.recipe.student.model
    part: MethodPart = job.arguments["part"]
    bare = deployed is student
    description = deployment.describe(
        {"name": model.name, "arguments": model.arguments},
        method.context.student,
        data.class_names,
        data.preprocessing,
        metrics={k: v for k, v in values.items() if "percent" in k},
        fingerprint=job.fingerprint,
    )
    description |= {
        "label": values["label"],
        "trial": values["trial"],
        "distillation": {"method": values["method"], "weights": values["weights"]},
        "method": None if bare else deployment.describe_method(method, part.name, part.arguments),
        "encoder_prefix": "" if bare else "encoder.",
    }
    with torch.no_grad():
        deployment.save(job.folder, "student", deployed, description)
