"""The transfer stage: equal conditions for each init, resuming, what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.engine import TrainSettings
from compress.errors import UserError
from compress.model_files import origins_of
from compress.recipe import signatures
from compress.recipe.schema import TransferPart, TransferTrain
from compress.run.directory import RunDirectory
from compress.run.plan import transfer_arguments
from compress.stages.job import StepJob
from eval.data.batches import KeyedBatches, in_iterations
from eval.transfer import stage
from eval.transfer.context import Start, TransferContext, compare_inits
from tests.eval.runs import write_run

Write = Callable[..., Path]


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run in which the students `kd` and `none` are there, with weights of other seeds."""
    return write_run(tmp_path / "run")


def job(run_folder: Path, entry: dict[str, Any], name: str = "first") -> StepJob:
    folder = run_folder / "transfer" / name
    folder.mkdir(parents=True, exist_ok=True)
    train = TransferTrain(epochs=2, lr=0.01, batch_size=4)
    part = TransferPart.model_validate(
        {"init": ["distilled", "scratch"], "train": train, **entry, "data": entry["data"]["name"]}
    )
    arguments = transfer_arguments(
        part,
        data=entry["data"],
        own=part.own_arguments,
        main="kd",
        seeds=tuple(range(part.seeds)),
    )
    return StepJob(
        name=f"transfer/{name}",
        folder=folder,
        run_folder=run_folder,
        arguments=arguments,
        device=torch.device("cpu"),
        workers=0,
    )


def entry_of(task: str, root: Path) -> dict[str, Any]:
    crops = {"name": "image_folder", "root": str(root / "crops")}
    data: dict[str, dict[str, Any]] = {
        "linear_probe": crops,
        "knn": crops,
        "neighbours": crops,
        "detection": {"name": "voc", "root": str(root)},
        "segmentation": {
            "name": "voc_segmentation",
            "root": str(root),
            "classes": ["background", "0", "1", "2"],
        },
    }
    return {"task": task, "data": data[task]}


@pytest.mark.parametrize("task", sorted(stage.TASKS))
def test_task_gives_the_same_values_twice_and_keeps_what_is_done(
    run_folder: Path, scenes: Write, task: str
) -> None:
    root = scenes()
    entry = entry_of(task, root)
    first = stage.run(job(run_folder, entry)).values
    assert [row["init"] for row in first["rows"]] == ["distilled", "scratch"]
    assert [row["matched_percent"] for row in first["rows"]] == [100.0, 0.0]
    assert all(first["headline"] in row["metrics"] for row in first["rows"])
    folder = run_folder / "transfer" / "first"
    assert all((folder / picture).is_file() for picture in first["pictures"])
    epochs = 0 if task in ("knn", "neighbours") else 2
    trained = folder / "scratch" / "seed-0" / "metrics.jsonl"
    assert (len(trained.read_text().splitlines()) if trained.exists() else 0) == epochs
    json.dumps(first)

    assert stage.run(job(run_folder, entry, "second")).values == first

    # Killed between the two inits: the finished one is read again, not trained again.
    (folder / "scratch" / "seed-0" / "outcome.json").unlink()
    checkpoint = folder / "distilled" / "seed-0" / "checkpoint.safetensors"
    checkpoint.unlink(missing_ok=True)
    assert stage.run(job(run_folder, entry)).values == first
    assert not checkpoint.exists()


def test_knn_goes_by_its_former_name_too(run_folder: Path, scenes: Write) -> None:
    root = scenes()
    now, before = (
        stage.run(job(run_folder, entry_of(task, root), task)).values
        for task in ("knn", "neighbours")
    )
    assert now == {**before, "task": "knn"}


def test_generated_scenes_serve_every_task(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, drawn_digits: tuple[Any, Any]
) -> None:
    monkeypatch.setattr("eval.data.digit_scenes.held_out_scenes_digits", lambda: drawn_digits)
    for task, size in (("linear_probe", 36), ("detection", 4), ("segmentation", 4)):
        data = {"name": "digit_scenes", "classes": 3}
        if task != "linear_probe":
            data |= {"train_images": 4, "test_images": 2}
        entry = {"task": task, "data": data, "init": ["alone"]}
        values = stage.run(job(run_folder, entry, task)).values
        assert values["data"] == {
            "name": "digit_scenes",
            "train_images": size,
            "test_images": 36 if task == "linear_probe" else 2,
        }
        assert values["rows"][0]["student"] == "none"


def context(
    run_folder: Path, inits: tuple[str, ...], seeds: tuple[int, ...] = (0,)
) -> TransferContext:
    return TransferContext(
        run=RunDirectory(run_folder, "run"),
        stage="transfer",
        students=origins_of(run_folder),
        main="kd",
        inits=inits,
        data={"name": "none"},
        settings=TrainSettings(epochs=1, lr=0.1),
        device=torch.device("cpu"),
        seeds=seeds,
    )


def test_each_init_starts_from_its_own_weights(run_folder: Path) -> None:
    starts: dict[str, Start] = {}

    def keep(start: Start) -> dict[str, float]:
        starts[start.init] = start
        return {"top1_percent": 1.0}

    inits = ("distilled", "alone", "none", "teacher", "scratch")
    compare_inits(context(run_folder, inits), keep)
    first = {init: start.encoder.state_dict() for init, start in starts.items()}
    name = "body.conv1.weight"
    for init, label in (("distilled", "kd"), ("alone", "none"), ("none", "none")):
        state = load_file(run_folder / "distill" / label / "student.safetensors")
        assert starts[init].student == label
        assert torch.equal(first[init][name], state["conv1.weight"])
    teacher = load_file(run_folder / "teacher" / "0" / "teacher.safetensors")
    assert torch.equal(first["teacher"][name], teacher["conv1.weight"])
    assert starts["scratch"].student == "kd"
    assert {k: v.shape for k, v in first["scratch"].items()} == {
        k: v.shape for k, v in first["distilled"].items()
    }
    assert not torch.equal(first["scratch"][name], first["distilled"][name])


def test_missing_student_names_those_there_are(run_folder: Path) -> None:
    with pytest.raises(UserError, match=r"init 'crd'.*kd, none"):
        compare_inits(context(run_folder, ("crd",)), lambda start: {})


def test_encoder_that_matches_in_part_is_refused(run_folder: Path) -> None:
    path = run_folder / "distill" / "kd" / "student.safetensors"
    state = load_file(path)
    del state["layer1.0.conv1.weight"]
    save_file(state, path)
    with pytest.raises(UserError, match=r"only 9\d\.\d % of the encoder"):
        compare_inits(context(run_folder, ("distilled",)), lambda start: {})


def test_batches_are_a_function_of_seed_epoch_and_index() -> None:
    def batches(seed: int, flip: bool = True) -> KeyedBatches[Any, Any]:
        return KeyedBatches(
            count=10,
            batch_size=4,
            seed=seed,
            flip=flip,
            read=lambda index, mirrored, _: (index, mirrored),
            collate=list,
        )

    torch.manual_seed(1)
    before = torch.get_rng_state()
    epochs = [list(batches(0).epoch(epoch)) for epoch in (0, 1)]
    assert torch.equal(before, torch.get_rng_state())
    assert epochs == [list(batches(0).epoch(epoch)) for epoch in (0, 1)]
    assert epochs[0] != epochs[1] and epochs[0] != list(batches(1).epoch(0))
    assert len(epochs[0]) == len(batches(0)) == 2
    seen = [index for batch in epochs[0] for index, _ in batch]
    assert len(set(seen)) == len(seen) == 8
    assert {mirrored for epoch in epochs for batch in epoch for _, mirrored in batch} == {
        True,
        False,
    }
    unflipped = list(batches(0, flip=False).epoch(0))
    assert [[i for i, _ in b] for b in unflipped] == [[i for i, _ in b] for b in epochs[0]]
    assert not any(mirrored for batch in unflipped for _, mirrored in batch)


def test_every_seed_is_trained_and_compared_in_pairs(run_folder: Path) -> None:
    """The metric is a function of (init, seed) that is known, so are mean, spread, difference."""
    folders = []

    def measured(start: Start) -> dict[str, float]:
        folders.append(start.folder.relative_to(run_folder / "transfer").as_posix())
        gain = {"distilled": 2.0, "alone": 0.0, "scratch": -5.0}[start.init]
        noise = 0.5 * start.seed * (start.init == "distilled")
        return {"top1_percent": 50 + 10.0 * start.seed + gain + noise}

    entry = context(run_folder, ("distilled", "alone", "scratch"), seeds=(3, 4, 5))
    rows = {row["init"]: row for row in compare_inits(entry, measured)}
    assert folders[:3] == ["distilled/seed-3", "distilled/seed-4", "distilled/seed-5"]
    assert [one["seed"] for one in rows["distilled"]["per_seed"]] == [3, 4, 5]
    assert rows["alone"]["metrics"] == {"top1_percent": 90.0}
    assert rows["alone"]["spread"] == {"top1_percent": 10.0}
    assert rows["alone"]["against"] is None
    differences = rows["distilled"]["against"]
    assert differences["reference"] == "alone"
    difference = differences["differences"]["top1_percent"]
    assert difference["mean"] == pytest.approx(4.0) and difference["pairs"] == 3
    # Student's t with 2 degrees of freedom: 4.3027; standard deviation of 3.5, 4, 4.5 is 0.5.
    half = 4.302653 * 0.5 / 3**0.5
    assert difference["interval"] == pytest.approx([4 - half, 4 + half], rel=1e-5)
    # All pairs differ by the same: nothing shows how sure that is.
    assert rows["scratch"]["against"]["differences"]["top1_percent"]["interval"] is None

    folders.clear()
    assert {r["init"]: r for r in compare_inits(entry, measured)} == rows and not folders


def test_scratch_of_another_seed_has_other_weights(run_folder: Path) -> None:
    weights = []

    def keep(start: Start) -> dict[str, float]:
        weights.append(start.encoder.state_dict()["body.conv1.weight"])
        return {"top1_percent": 1.0}

    compare_inits(context(run_folder, ("scratch", "distilled"), seeds=(0, 1)), keep)
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[2], weights[3])


@pytest.mark.parametrize(("iterations", "expected"), [(12, (6, 2)), (2, (1, 2)), (7, (1, 7))])
def test_iterations_are_steps_of_the_same_stream(
    iterations: int, expected: tuple[int, int]
) -> None:
    plain: KeyedBatches[int, list[int]] = KeyedBatches(
        count=9, batch_size=4, seed=0, flip=False, read=lambda index, *_: index, collate=list
    )
    batches, epochs = in_iterations(plain, iterations)
    assert (epochs, len(batches)) == expected
    stream = [batch for epoch in range(20) for batch in plain.epoch(epoch)]
    all_batches = [batch for epoch in range(epochs) for batch in batches.epoch(epoch)]
    assert all_batches == stream[:iterations]


def test_segmentation_with_batches_of_one_is_refused(run_folder: Path, scenes: Write) -> None:
    entry = entry_of("segmentation", scenes()) | {
        "train": TransferTrain(epochs=1, lr=0.1, batch_size=1)
    }
    with pytest.raises(UserError, match="two or more images"):
        stage.run(job(run_folder, entry))


def test_signatures_are_a_schema() -> None:
    problems = signatures.check(
        stage.TASKS["detection"],
        {"anchor_sizes": [8, 16], "flip": True, "image_size": None, "anchors": 3, "stride": "4"},
        "transfer.0",
    )
    assert [problem.partition(":")[0] for problem in problems] == [
        "transfer.0.anchors",
        "transfer.0.stride",
    ]
    assert set(stage.TASKS) == set(stage.DATASETS)
    for registry in stage.DATASETS.values():
        for function in registry.values():
            signatures.schema(function)


def test_an_entry_without_training_has_the_tasks_own() -> None:
    part = TransferPart.model_validate({"task": "linear_probe", "data": "x", "seeds": 3, "k": 1})
    assert (part.train.epochs, part.train.lr) == (120, 0.05)
    assert part.own_arguments == {"k": 1} and part.arguments == {"k": 1, "seeds": 3}
    assert TransferPart.model_validate(part.model_dump()) == part
    with pytest.raises(ValueError, match="no length"):
        TransferPart.model_validate({"task": "detection", "data": "x", "train": {"lr": 0.1}})


def test_seeds_of_an_entry_follow_the_recipes(run_folder: Path, scenes: Write) -> None:
    entry = entry_of("neighbours", scenes()) | {"seeds": 2, "k": 3, "init": ["alone", "scratch"]}
    values = stage.run(job(run_folder, entry)).values
    assert values["seeds"] == [0, 1]
    assert [one["seed"] for one in values["rows"][1]["per_seed"]] == [0, 1]
    assert set(values["origins"]) == {"kd", "none"}
