"""The output of `compress check`: what a recipe finds, would train and needs; nothing is kept."""

from collections import Counter
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from rich.table import Table

from compress.console.messages import console
from compress.data.augment import AUGMENTATIONS
from compress.errors import UserError
from compress.recipe.schema import Recipe
from compress.run import world
from compress.run.plan import RecipePlan
from compress.run.probe import Shapes
from compress.run.rehearsal import rehearse
from compress.run.stages import StageTable
from compress.stages import dataset_of
from compress.stages.distill import terms_for
from compress.stages.teacher import describe_other_normalisation, own_description
from compress.taps import VectorSpec
from compress.teacher.cache import expected_hit_share, obstacle


def show(
    plan: RecipePlan,
    shapes: Shapes | None,
    stages: StageTable,
    folder: Path,
    device: torch.device,
    workers: int,
    *,
    verbose: bool,
    timing: bool,
) -> None:
    """Print what the data are, what each network costs, and what the run needs.

    Args:
        folder: the run directory.
        verbose: also print the stages, where each network is tapped, and the adapters.
        timing: train a few steps of each training, to estimate the time.
    """
    recipe = plan.recipe
    if verbose:
        console.print(_stages(plan))
        if shapes is not None:
            console.print(_taps(shapes))
            console.print(_adapters(shapes))
    findings = chain(
        world.describe_data(recipe),
        world.describe_networks(recipe, shapes),
        world.describe_disk(recipe, shapes, folder),
    )
    if timing:
        rehearsal = partial(rehearse, recipe, stages, device, workers)
        findings = chain(
            findings, world.describe_time(recipe, rehearsal), world.describe_memory(device)
        )
    for name, finding in findings:
        console.print(f"{name:<18} {finding}", soft_wrap=True)
    notes = list_teacher_notes(recipe)
    if shapes is not None:
        notes += _list_cache_notes(plan, shapes)
    for note in notes:
        console.print(note, soft_wrap=True)
    console.print("The recipe is in order.")


def _stages(plan: RecipePlan) -> Table:
    table = Table("stage", "reads", title="Plan")
    for step in plan.steps:
        chosen = "the student that ships, chosen from " if step.chosen_from else ""
        table.add_row(step.name, chosen + ", ".join(step.inputs))
    return table


def _taps(shapes: Shapes) -> Table:
    taps = Table("network", "tap", "module", "shape", "stride", title="Taps")
    for role, (name, specs) in (
        *(("teacher", t) for t in shapes.teachers),
        ("student", shapes.student),
    ):
        maps = [("stage", spec) for spec in specs.stages]
        maps += [("pre-activation", spec) for spec in specs.pre_activations]
        maps += [("last map", specs.last_map)] if specs.last_map else []
        for kind, spec in maps:
            where = spec.path if spec.side == "output" else f"input of {spec.path}"
            shape = f"{spec.channels} x {spec.height} x {spec.width}"
            taps.add_row(f"{role} {name}", kind, where, shape, str(spec.stride))
        pooled = specs.of("pooled")
        if isinstance(pooled, VectorSpec):
            paths = " and ".join((pooled.path, *pooled.beside))
            place = f"input of {paths}" if paths else "output"
            taps.add_row(f"{role} {name}", "pooled", place, str(pooled.width))
        else:
            taps.add_row(f"{role} {name}", "pooled", "none", "")
    return taps


def _adapters(shapes: Shapes) -> Table:
    columns = "trains beside the student", "parameters", "ships beyond the student"
    adapters = Table("method", *columns, title="Adapters")
    for label, method in shapes.methods.items():
        parts = [
            f"{name} ({type(child).__name__})"
            for name, child in method.named_children()
            if any(p.requires_grad for p in child.parameters())
        ]
        count = sum(p.numel() for p in method.parameters() if p.requires_grad)
        shipped = f"{shapes.added[label]:+,}" if shapes.added.get(label) else "nothing"
        adapters.add_row(label, ", ".join(parts) or "nothing", f"{count:,}", shipped)
    return adapters


def _list_cache_notes(plan: RecipePlan, shapes: Shapes) -> list[str]:
    """The share of targets that a teacher cache is expected to save each method, or why none."""
    recipe = plan.recipe
    if recipe.engine.cache is None:
        return []
    views_kept = recipe.data.views or AUGMENTATIONS[recipe.data.augment].views
    notes = []
    for label, part in recipe.methods.items():
        if label not in shapes.methods:
            continue
        method, terms = shapes.methods[label], terms_for(part, recipe)
        wanted = {*(method.teacher_taps if terms.method else ()), *(["logits"] if terms.kd else [])}
        seen = [
            view.image_view(recipe.data.augment).label
            for view in method.views
            if view.is_for_teacher(terms)
        ]
        specs, images = shapes.teachers[0][1], recipe.data.train_images or 0
        reason = obstacle(sorted(wanted), specs, seen, images, views_kept)
        if reason is None:
            epochs, alike = recipe.distill.train.epochs, Counter(seen)
            draws = epochs * len(seen)
            hits = sum(n * expected_hit_share(epochs * n, views_kept) for n in alike.values())
            share = 100 * hits / len(seen)
            reason = (
                f"teacher cache: of {draws} times that an image is shown, in {views_kept} views, a "
                f"cold run is expected to find {share:.1f} % of the targets there"
            )
        notes.append(f"{label}: {reason}")
    return notes


def list_teacher_notes(recipe: Recipe) -> list[str]:
    """Remarks on teachers from files that may not fit; opens the data, where they are here."""
    notes = []
    for part in recipe.teacher:
        try:
            known = own_description(part)
            if part.checkpoint is None or known is None or part.preprocessing is not None:
                continue
            preprocessing = dataset_of(recipe).preprocessing
        except UserError:
            continue  # the run tells what is wrong with the file or the data
        difference = describe_other_normalisation(part.checkpoint, known, preprocessing)
        notes += [f"teacher: {difference}"] if difference is not None else []
    return notes
