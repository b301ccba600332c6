"""The transfer stage: equal conditions for each init, resuming, what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress import deployment, models, signatures
from compress.artifacts import Job
from compress.data import MemoryImages, Preprocessing
from compress.deployment import Encoder
from compress.errors import UserError
from compress.optimisation import Settings
from compress.recipe import Train
from compress.tap_discovery import discover
from eval import context as context_module
from eval import stage
from eval.batches import KeyedBatches
from eval.context import Context, Start, compare_inits
from eval.linear_probe import pooled_features

Write = Callable[..., Path]


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """A run in which the students `kd` and `none` are there, with weights of other seeds."""
    preprocessing = Preprocessing(16, (0.3, 0.3, 0.3), (0.3, 0.3, 0.3))
    for seed, label in enumerate(("kd", "none"), 1):
        network = models.build("resnet8", num_classes=3, seed=seed)
        folder = tmp_path / "run" / "distill" / label
        folder.mkdir(parents=True)
        description = deployment.describe(
            {"name": "resnet8", "arguments": {}},
            discover(network, (3, 16, 16), "resnet8"),
            ("a", "b", "c"),
            preprocessing,
            metrics={},
            fingerprint="",
        )
        description |= {"method": None, "encoder_prefix": ""}
        deployment.save(folder, "student", network, description)
    return tmp_path / "run"


def job(run_folder: Path, entry: dict[str, Any], name: str = "first") -> Job:
    folder = run_folder / "transfer" / name
    folder.mkdir(parents=True, exist_ok=True)
    method = SimpleNamespace(name="kd", label=None)
    recipe: Any = SimpleNamespace(seed=0, distill=SimpleNamespace(method=method))
    train = Train(epochs=2, lr=0.01, batch_size=4)
    arguments = {"name": name, "init": ["distilled", "scratch"], "train": train, **entry}
    return Job(
        name=f"transfer/{name}",
        folder=folder,
        run_folder=run_folder,
        recipe=recipe,
        arguments=arguments,
        device=torch.device("cpu"),
        workers=0,
        recipe_fingerprint="",
    )


def entry_of(task: str, root: Path) -> dict[str, Any]:
    data: dict[str, dict[str, Any]] = {
        "linear_probe": {"name": "image_folder", "root": str(root / "crops")},
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
    assert len((folder / "scratch" / "metrics.jsonl").read_text().splitlines()) == 2
    json.dumps(first)

    assert stage.run(job(run_folder, entry, "second")).values == first

    # Killed between the two inits: the finished one is read again, not trained again.
    (folder / "scratch" / "outcome.json").unlink()
    checkpoint = folder / "distilled" / "checkpoint.safetensors"
    checkpoint.unlink()
    assert stage.run(job(run_folder, entry)).values == first
    assert not checkpoint.exists()


def test_generated_scenes_serve_every_task(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, drawn_digits: tuple[Any, Any]
) -> None:
    monkeypatch.setattr("eval.digit_scenes.held_out_scenes_digits", lambda: drawn_digits)
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


def context(run_folder: Path, inits: tuple[str, ...]) -> Context:
    return Context(
        folder=run_folder,
        students=stage.trained_students(run_folder),
        main="kd",
        inits=inits,
        data={"name": "none"},
        settings=Settings(epochs=1, lr=0.1),
        device=torch.device("cpu"),
        seed=0,
    )


def test_each_init_starts_from_its_own_weights(run_folder: Path) -> None:
    starts: dict[str, Start] = {}

    def keep(start: Start) -> dict[str, float]:
        starts[start.init] = start
        return {}

    compare_inits(context(run_folder, ("distilled", "alone", "none", "scratch")), keep)
    first = {init: start.encoder.state_dict() for init, start in starts.items()}
    name = "body.conv1.weight"
    for init, label in (("distilled", "kd"), ("alone", "none"), ("none", "none")):
        state = load_file(run_folder / "distill" / label / "student.safetensors")
        assert starts[init].student == label
        assert torch.equal(first[init][name], state["conv1.weight"])
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
            read=lambda index, mirrored: (index, mirrored),
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


def test_probe_leaves_the_trunk_untouched(
    run_folder: Path, scenes: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Encoder, dict[str, torch.Tensor]]] = []
    load = context_module.load_encoder

    def remember(*arguments: Any, **keywords: Any) -> Encoder:
        encoder = load(*arguments, **keywords)
        seen.append((encoder, {k: v.clone() for k, v in encoder.state_dict().items()}))
        return encoder

    monkeypatch.setattr(context_module, "load_encoder", remember)
    stage.run(job(run_folder, entry_of("linear_probe", scenes())))
    assert len(seen) == 2
    for encoder, before in seen:
        after = encoder.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_pooled_features_are_the_means_of_the_map(encoder: Encoder) -> None:
    pixels = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    images = MemoryImages(pixels, torch.arange(5))
    features, labels = pooled_features(encoder, images, torch.device("cpu"))
    maps = encoder.eval()((pixels.float() / 255 - 0.3) / 0.3).detach()
    expected = torch.tensor(
        [[float(maps[n, c].double().mean()) for c in range(8)] for n in range(5)]
    )
    torch.testing.assert_close(features, expected)
    assert labels.tolist() == list(range(5))


def test_segmentation_with_batches_of_one_is_refused(run_folder: Path, scenes: Write) -> None:
    entry = entry_of("segmentation", scenes()) | {"train": Train(epochs=1, lr=0.1, batch_size=1)}
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
