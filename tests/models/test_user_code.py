"""Networks of a user's own: found, trusted only when asked, refused once changed; and timm's."""

import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch

from compress import model_files, models
from compress.errors import UserError
from compress.models import user_code
from compress.storage.files import read_json, write_json
from compress.taps import discover
from tests.export import mutations
from tests.methods import building

CODE = """
from torch import nn

def small(*, num_classes, width=8):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes),
    )

def wrong(*, num_classes):
    return "no network"
"""


@pytest.fixture(autouse=True)
def _forget_trust(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_code, "_trusted", set())


@pytest.fixture
def name(tmp_path: Path) -> str:
    path = tmp_path / "my nets.py"
    path.write_text(CODE)
    return f"{path}:small"


def save(
    folder: Path, name: str, arguments: Mapping[str, Any] = MappingProxyType({"width": 12})
) -> torch.nn.Module:
    folder.mkdir()
    network = models.build(name, num_classes=5, **arguments).eval()
    description = model_files.describe(
        {"name": name, "arguments": dict(arguments)},
        discover(network, building.SHAPE, name),
        tuple("abcde"),
        building.PREPROCESSING,
        metrics={},
        fingerprint="f",
    )
    description |= {"method": None, "encoder_prefix": ""}
    model_files.save(folder, "student", network, description)
    return network


def test_a_file_and_a_module_are_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = models.build(name, num_classes=5, width=12)
    assert network(torch.randn(2, 3, 8, 8)).shape == (2, 5)
    assert discover(network, building.SHAPE, name).pooled_width == 12
    other = models.build("torchvision.models:resnet18", num_classes=5)
    assert other(torch.randn(2, 3, 32, 32)).shape == (2, 5)


def test_a_student_of_own_code_is_rebuilt_bit_for_bit(name: str, tmp_path: Path) -> None:
    network = save(tmp_path / "s", name)
    with pytest.raises(UserError, match=r"run again with --trust-code"):
        model_files.load_student(tmp_path / "s")
    user_code.trust(name)
    images = torch.randn(3, *building.SHAPE)
    assert torch.equal(model_files.load_student(tmp_path / "s").network(images), network(images))


def test_untrusted_code_is_not_even_imported(name: str, tmp_path: Path) -> None:
    save(tmp_path / "s", name)
    path = Path(name.rpartition(":")[0])
    path.write_text(f"open({str(tmp_path / 'harmed')!r}, 'w')\n{CODE}")
    with pytest.raises(UserError, match="--trust-code"):
        model_files.load_student(tmp_path / "s")
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize("name", [*mutations.CODE, "torch.hub:load", "os:system", "nowhere:x"])
def test_the_name_alone_decides_what_is_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    save(tmp_path / "s", "resnet8", {})
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sentinel = mutations.plant(tmp_path)
    described = read_json(tmp_path / "s/student.json")
    described["architecture"]["name"] = name
    for code in (None, {}, False, {"file": "evil.py"}, "lacks"):
        described["code"] = code
        if code == "lacks":
            del described["code"]
        write_json(tmp_path / "s/student.json", described)
        with pytest.raises(UserError, match=r"--trust-code|code\S*: "):
            model_files.load_student(tmp_path / "s")
    user_code.trust("*")
    with pytest.raises(UserError, match="holds no SHA-256 of it"):
        model_files.load_student(tmp_path / "s")
    assert not sentinel.exists()


def test_a_package_around_code_that_has_changed_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    sentinel = mutations.plant(tmp_path)
    user_code.trust("*")
    recorded = {"file": "inner.py", "sha256": "0" * 64}
    with pytest.raises(UserError, match="now holds other code"):
        user_code.verify("evil_package.inner:net", recorded, tmp_path)
    assert not sentinel.exists()


def test_changed_code_is_refused_with_both_places(name: str, tmp_path: Path) -> None:
    save(tmp_path / "s", name)
    user_code.trust("*")
    path = Path(name.rpartition(":")[0])
    path.write_text(CODE + "\n# changed")
    with pytest.raises(UserError, match=r"was made with .*my nets\.py.* now holds other code"):
        model_files.load_student(tmp_path / "s")


def test_moved_code_is_named(name: str, tmp_path: Path) -> None:
    save(tmp_path / "s", name)
    user_code.trust("*")
    Path(name.rpartition(":")[0]).unlink()
    with pytest.raises(UserError, match=r"my nets\.py' not found"):
        model_files.load_student(tmp_path / "s")
    # Told where it is now, the same code is accepted: its digest says that it is the same.
    (tmp_path / "moved.py").write_text(CODE)
    described = read_json(tmp_path / "s/student.json")
    described["architecture"]["name"] = f"{tmp_path}/moved.py:small"
    write_json(tmp_path / "s/student.json", described)
    model_files.load_student(tmp_path / "s")


@pytest.mark.parametrize(
    ("suffix", "words"),
    [
        ("my nets.py:smal", "no callable 'smal'; did you mean 'small'"),
        ("nowhere.py:small", "not found"),
        ("broken.py:small", "importing .*broken.py' failed: ZeroDivisionError"),
    ],
)
def test_code_that_cannot_be_used(name: str, tmp_path: Path, suffix: str, words: str) -> None:
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(UserError, match=words):
        models.find(f"{tmp_path}/{suffix}")


def test_a_builder_that_does_not_build(name: str) -> None:
    with pytest.raises(UserError, match=r"returned a str; expected an nn\.Module"):
        models.build(name.replace(":small", ":wrong"), num_classes=3)
    with pytest.raises(UserError, match=r"called with num_classes, depth: .*depth"):
        models.build(name, num_classes=3, depth=2)


@pytest.mark.parametrize("name", ["torchvison:resnet18", "hub:net", "timmm:x"])
def test_an_unknown_prefix_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"unknown kind of model .*FILE\.py:CALLABLE"):
        models.find(name)


def test_libraries_are_no_users_code() -> None:
    assert set(models.PREFIXES) == set(user_code.LIBRARIES)
    assert not any(user_code.is_user_code(f"{name}:resnet18") for name in models.PREFIXES)


def test_timm_networks_are_found_and_tapped() -> None:
    pytest.importorskip("timm", reason="timm is an extra")
    network = models.build("timm:resnet18", num_classes=4).eval()
    specs = discover(network, (3, 64, 64), "timm:resnet18")
    assert specs.last_map is not None
    assert (specs.last_map.path, specs.last_map.channels, specs.classifier) == ("layer4", 512, "fc")
    with pytest.raises(UserError, match=r"timm has no network 'resnet81'"):
        models.find("timm:resnet81")


def test_without_timm_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install 'compress\[timm\]'"):
        models.find("timm:resnet18")
