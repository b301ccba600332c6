"""A model file's description has the shape that this version writes, or is refused in words."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from compress import model_files, models
from compress.errors import UserError
from compress.methods import METHODS
from compress.model_files import load_encoder
from compress.model_files.arguments import without_sources
from compress.models.memory import limited_by
from compress.storage.files import read_json, write_json
from compress.taps import discover
from tests.methods import building

CLASSES = tuple("abcde")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The description of a SimKD student; its weights lie in `saved["folder"]`."""
    folder = tmp_path_factory.mktemp("saved")
    module = building.distillation(METHODS["simkd"])
    deployed = module.method.deploy(module.student).eval()
    content = model_files.describe(
        {"name": "resnet8", "arguments": {}},
        module.method.context.student,
        CLASSES,
        building.PREPROCESSING,
        metrics={},
        fingerprint="f",
    )
    method = model_files.describe_method(module.method, "simkd", {})
    content |= {"method": method, "encoder_prefix": "encoder.", "label": "simkd"}
    model_files.save(folder, "student", deployed, content)
    return {"folder": folder, "content": read_json(folder / "student.json")}


def put(content: dict[str, Any], path: str, value: Any) -> None:
    *places, last = path.split(".")
    for place in places:
        content = content[int(place)] if isinstance(content, list) else content[place]
    content[last] = value


WRONG: list[tuple[str, Any, str]] = [
    ("num_classes", "5", "num_classes: input should be a valid integer, got '5'"),
    ("num_classes", 10**12, "num_classes: input should be less .*, got 1000000000000"),
    ("num_classes", 6, "num_classes is 6, but class_names has 5"),
    ("class_names", "abcde", "class_names: input should be a valid list, got 'abcde'"),
    ("class_names", [1, 2, 3, 4, 5], r"class_names\.0: .* string, got 1 \(and 4 more\)"),
    ("input_shape", [3, 16, 32], r"input_shape is not \[3, 16, 16\]"),
    ("preprocessing", None, "preprocessing: .*, got None"),
    ("preprocessing.mean", 0.5, r"preprocessing\.mean: .* list, got 0\.5"),
    ("preprocessing.std", [1, 1, 0], r"preprocessing\.std\.2: .* greater than 0, got 0"),
    ("preprocessing.image_size", 10**9, r"preprocessing\.image_size: .*, got 1000000000"),
    ("preprocessing.colour", 1, r"preprocessing\.colour: unknown key"),
    ("taps", [], r"taps: .*, got \[\]"),
    ("taps.stages", {}, r"taps\.stages: .* list, got \{\}"),
    ("taps.last_map.path", 3, r"taps\.last_map\.path: .* string, got 3"),
    ("taps.last_map.stride", 0, r"taps\.last_map\.stride: .*, got 0"),
    ("taps.last_map.stride", 8, "'layer3' has stride 8, but 16 pixels to 4 are 4"),
    ("taps.last_map.channels", 65, r"the network makes \(64, 4, 4\), described is \(65, 4, 4\)"),
    ("method.student.last_map.height", 64, "the network cannot run on an image of 16 pixels"),
    ("taps.last_map.path", "layer9", "resnet|cannot be cut after 'layer9'"),
    ("method", "simkd", "method: .*, got 'simkd'"),
    ("method.name", "simk", r"method\.name 'simk' is none of .*did you mean 'simkd'"),
    ("method.arguments", {"reduction": "two"}, r"method\.arguments\.reduction: .*'two'"),
    ("method.arguments", {"reduktion": 2}, r"method\.arguments\.reduktion: unknown key"),
    ("method.arguments", {"reduction": 10**9}, "does not fit its taps: reduction is 1 to"),
    ("method.teachers", [], "does not fit its taps: the method reads one teacher"),
    ("method.teachers.0.taps.pooled_width", 2**24, "a small part of the network described"),
    ("architecture", "resnet8", "architecture: .*, got 'resnet8'"),
    ("architecture.name", None, r"architecture\.name: .*, got None"),
    ("architecture.name", "resnet9", "unknown model 'resnet9'"),
    ("architecture.arguments", [], r"architecture\.arguments: .*, got \[\]"),
    ("architecture.arguments", {"depth": 200}, r"architecture\.arguments\.depth: unknown key"),
    ("architecture.arguments", {"depth": 10**9}, "depth holds a number that is larger than"),
    ("architecture.arguments", {"num_classes": 9}, "num_classes is no argument of an arch"),
    ("encoder_prefix", None, "encoder_prefix is not given as text"),
    ("label", "../../elsewhere", "label: .* pattern .*, got '../../elsewhere'"),
    ("format", True, "has format True; this version reads 1"),
]


@pytest.mark.parametrize(("path", "value", "words"), WRONG)
def test_what_is_wrong_is_said_in_one_sentence(
    saved: dict[str, Any], tmp_path: Path, path: str, value: Any, words: str
) -> None:
    (tmp_path / "student.safetensors").symlink_to(saved["folder"] / "student.safetensors")
    write_json(tmp_path / "student.json", saved["content"])
    model_files.load_student(tmp_path)  # as it was written
    content = read_json(tmp_path / "student.json")
    put(content, path, value)
    write_json(tmp_path / "student.json", content)
    with pytest.raises(UserError, match=words) as refusal:
        model_files.load_student(tmp_path)
        load_encoder(tmp_path)
    assert len(str(refusal.value).splitlines()) == 1
    assert len(str(refusal.value)) < 2000


@pytest.mark.parametrize(
    "text",
    ["[]", "null", "[" * 10**5, '{"format": NaN}', "1" * 5000, '{"a": ' * 60 + "1" + "}" * 60],
)
def test_what_is_no_description_at_all(tmp_path: Path, text: str) -> None:
    (tmp_path / "student.json").write_text(text)
    with pytest.raises(UserError, match=r"student\.json (is damaged|has format)"):
        model_files.load_description(tmp_path)


SOURCES: list[tuple[str, dict[str, Any]]] = [
    ("torchvision:resnet18", {"weights": "DEFAULT"}),
    ("torchvision:resnet18", {"pretrained": True}),
    ("torchvision:resnet18", {"norm_layer": "/etc/passwd"}),
    ("timm:resnet10t", {"pretrained": "yes"}),
    ("timm:resnet10t", {"checkpoint_path": "evil.pth"}),
    ("timm:resnet10t", {"pretrained_cfg": {"file": "evil"}}),
    ("timm:resnet10t", {"cache_dir": "x"}),
]


@pytest.mark.parametrize(("name", "arguments"), SOURCES)
def test_no_argument_reads_a_file_or_the_network(
    saved: dict[str, Any], tmp_path: Path, name: str, arguments: dict[str, Any]
) -> None:
    content = {**saved["content"], "architecture": {"name": name, "arguments": arguments}}
    write_json(tmp_path / "student.json", content)
    with pytest.raises(UserError, match=r"architecture\.arguments\.\w+ (takes|holds text)"):
        model_files.load_description(tmp_path)


def test_weights_from_elsewhere_are_the_recipes_business() -> None:
    arguments = {"pretrained": True, "img_size": 64, "checkpoint_path": "mine.pth"}
    assert without_sources("timm:resnet10t", arguments) == {"img_size": 64}
    assert without_sources("own.py:net", arguments) == arguments
    specs = discover(models.build("resnet8", num_classes=5), building.SHAPE, "resnet8")
    described = model_files.describe(
        {"name": "torchvision:resnet18", "arguments": {"weights": "DEFAULT"}},
        specs, CLASSES, building.PREPROCESSING, metrics={}, fingerprint="f",
    )  # fmt: skip
    assert described["architecture"]["arguments"] == {}


def test_an_earlier_file_of_a_pretrained_network_needs_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timm = pytest.importorskip("timm", reason="timm is an extra")
    network = models.build("timm:resnet10t", num_classes=5, seed=3).eval()
    content = model_files.describe(
        {"name": "timm:resnet10t", "arguments": {}},
        discover(network, building.SHAPE, "timm:resnet10t"),
        CLASSES, building.PREPROCESSING, metrics={}, fingerprint="f",
    )  # fmt: skip
    content["architecture"]["arguments"] = {"pretrained": True}
    model_files.save(
        tmp_path, "student", network, {**content, "method": None, "encoder_prefix": ""}
    )

    def refuse(*_: Any, **given: Any) -> None:
        assert not given.get("pretrained")

    create: Callable[..., torch.nn.Module] = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: refuse(**k) or create(*a, **k))
    images = torch.randn(2, *building.SHAPE)
    with torch.no_grad():
        assert torch.equal(model_files.load_student(tmp_path).network(images), network(images))


def test_a_network_that_its_file_cannot_hold_is_not_built(
    saved: dict[str, Any], tmp_path: Path
) -> None:
    wide = {"name": "torchvision:resnet50", "arguments": {"width_per_group": 2**20}}
    content = {**saved["content"], "architecture": wide}
    (tmp_path / "student.safetensors").symlink_to(saved["folder"] / "student.safetensors")
    write_json(tmp_path / "student.json", content)
    with pytest.raises(UserError, match="a small part of the network described"):
        model_files.load_student(tmp_path)


@pytest.mark.parametrize("name", ["resnet8", "torchvision:mobilenet_v2"])
def test_the_limit_changes_no_bit_of_what_is_built(saved: dict[str, Any], name: str) -> None:
    free = models.build(name, num_classes=5, seed=7).state_dict()
    with limited_by(saved["folder"] / "student.safetensors"):
        limited = models.build(name, num_classes=5, seed=7).state_dict()
    assert all(torch.equal(free[key], value) for key, value in limited.items())
