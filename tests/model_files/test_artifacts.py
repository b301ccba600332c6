"""Model files rebuild the very network, alone, and give up their encoder without a teacher."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from compress import model_files
from compress.distill import Distillation
from compress.engine import TrainSettings, train
from compress.errors import UserError
from compress.methods import METHODS, Method
from compress.model_files import load_encoder
from compress.models import build
from compress.storage.files import read_tensors, write_json, write_tensors
from compress.storage.integrity import seal
from compress.storage.results import require_whole
from tests.methods import building

NAMES = tuple("abcde")
# What only a student of its own kind can learn is in tests/run/test_transformers.py.
OF_RESNETS = [name for name in METHODS if name != "deit"]
OF_IMAGES = [name for name in OF_RESNETS if METHODS[name].images]
PSPNET = {"name": "pspnet", "arguments": {"encoder": "resnet8", "width": 12}}


def save(folder: Path, method_class: type[Method], name: str) -> nn.Module:
    """A student with moved batch-norm statistics, saved as the distill stage does."""
    module = building.distillation(method_class).train()
    for batch in building.batches(module.method).epoch(0):
        module(batch)
    deployed = module.method.ship(module.student).eval()
    model_files.save(folder, "student", deployed, _described(module, deployed, name))
    return deployed


def _described(module: Distillation, deployed: nn.Module, name: str) -> dict[str, Any]:
    dense, preprocessing = module.task.is_dense, building.PREPROCESSING
    description = model_files.describe(
        PSPNET if dense else {"name": "resnet8", "arguments": {}},
        module.method.encoder_taps(),
        NAMES,
        replace(preprocessing, image_size=building.DENSE_SHAPE[-1]) if dense else preprocessing,
        metrics={},
        fingerprint="f",
    )
    bare = deployed is module.student
    return description | {
        "method": None if bare else model_files.describe_method(module.method, name, {}),
        "encoder_prefix": "" if bare else "encoder.",
    }


@pytest.mark.parametrize("name", OF_RESNETS)
def test_a_student_is_rebuilt_bit_for_bit(tmp_path: Path, name: str) -> None:
    deployed = save(tmp_path, METHODS[name], name)
    loaded = model_files.load_student(tmp_path)
    assert not loaded.network.training
    shape = building.SHAPE if METHODS[name].images else building.DENSE_SHAPE
    images = torch.randn(4, *shape)
    with torch.no_grad():
        assert torch.equal(loaded.network(images), deployed(images))
    assert loaded.description["class_names"] == list(NAMES)


@pytest.mark.parametrize("name", OF_IMAGES)
def test_the_encoder_comes_out_whole(tmp_path: Path, name: str) -> None:
    deployed = save(tmp_path, METHODS[name], name)
    encoder = load_encoder(tmp_path).eval()
    assert encoder.matched_percent == 100
    # A student whose last stage is the teacher's ends earlier.
    stride = {"simkd_plus": 2}.get(name, 4)
    assert (encoder.channels, encoder.stride) == (16 * stride, stride)
    images = torch.randn(2, *building.SHAPE)
    with torch.no_grad():
        maps = encoder(images)
        if "encoder" in dict(deployed.named_children()):
            assert torch.equal(maps, deployed.get_submodule("encoder")(images))
        else:
            logits = deployed.get_submodule("fc")(maps.mean((2, 3)))
            torch.testing.assert_close(logits, deployed(images))
    assert encoder(torch.randn(1, 3, 40, 64)).shape[2:] == (40 // stride, 64 // stride)


def test_a_network_that_segments_has_no_encoder_for_transfer(tmp_path: Path) -> None:
    save(tmp_path, METHODS["skd"], "skd")
    with pytest.raises(UserError, match="segments; transfer takes encoders of what classifies"):
        load_encoder(tmp_path)


@pytest.mark.parametrize("name", ["wrn_16_2", "vgg8", "torchvision:resnet18", "timm:resnet10t"])
def test_any_architecture_is_rebuilt_bit_for_bit(tmp_path: Path, name: str) -> None:
    if name.startswith("timm:"):
        pytest.importorskip("timm", reason="timm is an extra")
    student = build(name, num_classes=5, seed=4).eval()
    teacher = build("resnet8x4", num_classes=5, role="teacher")
    method = METHODS["simkd"](building.context(student, [teacher]))
    deployed = method.deploy(student).eval()
    description = model_files.describe(
        {"name": name, "arguments": {}},
        method.context.student,
        NAMES,
        building.PREPROCESSING,
        metrics={},
        fingerprint="f",
    )
    told = model_files.describe_method(method, "simkd", {})
    description |= {"method": told, "encoder_prefix": "encoder."}
    model_files.save(tmp_path, "student", deployed, description)
    images = torch.randn(4, *building.SHAPE)
    with torch.no_grad():
        assert torch.equal(model_files.load_student(tmp_path).network(images), deployed(images))
    assert load_encoder(tmp_path).matched_percent == 100


def test_scratch_is_the_architecture_with_seeded_weights(tmp_path: Path) -> None:
    save(tmp_path, METHODS["none"], "none")
    one, same = (load_encoder(tmp_path, weights=False, seed=3) for _ in range(2))
    assert one.matched_percent == 0
    reference = build("resnet8", num_classes=5, seed=3).state_dict()
    for key, value in one.body.state_dict().items():
        assert torch.equal(value, reference[key])
        assert torch.equal(value, same.body.state_dict()[key])


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    save(tmp_path, METHODS["simkd"], "simkd")
    path = tmp_path / "student.json"
    described = json.loads(path.read_text())

    path.write_text(
        json.dumps({**described, "architecture": {"name": "resnet14", "arguments": {}}})
    )
    with pytest.raises(UserError, match=r"student\.safetensors does not fit its description"):
        model_files.load_student(tmp_path)

    path.write_text(json.dumps({**described, "format": 99}))
    with pytest.raises(UserError, match="has format 99"):
        model_files.load_student(tmp_path)

    path.unlink()
    with pytest.raises(UserError, match=r"student\.json not found"):
        model_files.load_student(tmp_path)


def _train_one_epoch(folder: Path, name: str) -> nn.Module:
    """A training that stopped after its first epoch, as the distill stage leaves it."""
    module = building.distillation(METHODS[name])
    deployed = module.method.ship(module.student)
    write_json(folder / "description.json", seal(_described(module, deployed, name)))
    train(
        module,
        building.batches(module.method),
        TrainSettings(epochs=1, lr=0.01),
        directory=folder,
        role="test",
        seed=0,
        device=building.CPU,
        evaluate=lambda: {"top1_percent": 12.5},
    )
    return deployed.eval()


@pytest.mark.parametrize("name", ["kd", "simkd", "crd"])
def test_an_interrupted_training_is_rebuilt_from_its_checkpoint(tmp_path: Path, name: str) -> None:
    deployed = _train_one_epoch(tmp_path, name)
    student = model_files.load_unfinished(tmp_path)
    images = torch.randn(4, *building.SHAPE)
    with torch.no_grad():
        assert torch.equal(student.network(images), deployed(images))
    assert student.description["metrics"] == {"top1_percent": 12.5}
    assert student.description["interrupted"] == {"after_epoch": 1, "weights_of_epoch": 1}


def test_a_training_without_a_whole_epoch_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no whole epoch"):
        model_files.load_unfinished(tmp_path)


def test_an_interrupted_training_that_chooses_its_epoch_says_which(tmp_path: Path) -> None:
    _train_one_epoch(tmp_path, "kd")
    rows = [{"epoch": 1, "top1_percent": 50.0}, {"epoch": 2, "top1_percent": 40.0}]
    path = tmp_path / "checkpoint.safetensors"
    tensors, metadata = read_tensors(path)
    write_tensors(path, tensors, {**metadata, "history": json.dumps(rows)})
    state = {k.removeprefix("module."): v for k, v in tensors.items() if k.startswith("module.")}
    write_tensors(tmp_path / "best-0001.safetensors", state)
    (tmp_path / "metrics.jsonl").unlink()  # it is written after the checkpoint
    description = model_files.load_unfinished(tmp_path).description
    assert description["interrupted"] == {"after_epoch": 2, "weights_of_epoch": 1}
    assert description["metrics"] == {"top1_percent": 50.0}


def test_a_damaged_or_foreign_checkpoint_is_not_exported(tmp_path: Path) -> None:
    (tmp_path / "distill/kd").mkdir(parents=True)
    _train_one_epoch(tmp_path / "distill/kd", "kd")  # under the role "test"
    with pytest.raises(UserError, match=r"another training: its role is test, not distill/kd"):
        model_files.load_unfinished(tmp_path / "distill/kd")
    _train_one_epoch(tmp_path, "kd")
    for name in ("checkpoint.safetensors", "description.json"):
        path = tmp_path / name
        whole = path.read_bytes()
        changed = whole.replace(b'"num_classes": 5', b'"num_classes": 6')
        path.write_bytes(whole[:-5] + b"\x01" + whole[-4:] if changed == whole else changed)
        with pytest.raises(UserError, match=rf"{name} is damaged.*run the recipe again"):
            model_files.load_unfinished(tmp_path)
        path.write_bytes(whole)
    assert "digest" not in model_files.load_unfinished(tmp_path).description


def test_a_result_file_outside_a_run_directory_says_nothing(tmp_path: Path) -> None:
    """What lies beside a model file, or above it, is judged inside a run directory alone."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for place in (folder, tmp_path):
        (place / "result.json").write_text('{"top1": 71.3}')
        require_whole(folder, "student")
    (tmp_path / "resolved.yaml").touch()
    with pytest.raises(UserError, match=r"mine/result\.json is damaged; run the recipe again"):
        require_whole(folder, "student")
