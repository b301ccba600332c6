"""Origins: bit-equal encoders from runs, products of a method, and plain files; what is refused."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compress import model_files, models
from compress.errors import UserError
from compress.model_files import open_origin, origins_of, read_state
from compress.taps import Tapped
from tests.eval.runs import write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run")


def test_maps_are_those_of_the_stored_network_to_the_bit(run: Path) -> None:
    student = model_files.load_student(run / "distill" / "kd")
    images = torch.randn(2, 3, 16, 16)
    for given in (run, run / "distill" / "kd"):
        origin = open_origin(str(given))
        assert origin.name == "kd" and origin.preprocessing.image_size == 16
        with torch.no_grad():
            expected = Tapped(student.network, origin.taps, ("last_map",))(images).tensor(
                "last_map"
            )
            assert torch.equal(origin.encoder().eval()(images), expected)
            assert torch.equal(origin.network().eval()(images), student.network(images))
    assert origin.describe()["architecture"] == {"name": "resnet8", "arguments": {}}


def test_scratch_depends_on_the_seed_alone(run: Path) -> None:
    origin = open_origin(str(run))
    first, same, other = (origin.encoder(weights=False, seed=s).state_dict() for s in (1, 1, 2))
    assert first.keys() == origin.encoder().state_dict().keys()
    assert torch.equal(first["body.conv1.weight"], same["body.conv1.weight"])
    assert not torch.equal(first["body.conv1.weight"], other["body.conv1.weight"])
    assert origin.encoder(weights=False, seed=1).matched_percent == 0


def test_students_and_teacher_of_a_run(run: Path) -> None:
    found = origins_of(run)
    assert set(found) == {"kd", "none", "teacher"}
    origins = {label: open_origin(str(place)) for label, place in found.items()}
    assert {label: origin.name for label, origin in origins.items()} == {k: k for k in found}
    assert len({origin.digest for origin in origins.values()}) == 3


@pytest.mark.parametrize("wrapped", [False, True])
def test_plain_file_of_a_zoo_network(tmp_path: Path, wrapped: bool) -> None:
    """The class count is the file's; DataParallel's prefix and a wrapper are taken off."""
    network = models.build("resnet8", num_classes=7, seed=5)
    state = network.state_dict()
    content = {"model": {f"module.{k}": v for k, v in state.items()}} if wrapped else state
    path = tmp_path / "plain.pth"
    torch.save(content, path)
    for origin in (open_origin(f"resnet8@{path}"), open_origin(str(path), model="resnet8")):
        assert origin.preprocessing.image_size == 32 and origin.taps.num_classes == 7
        encoder = origin.encoder()
        assert encoder.matched_percent == 100
        loaded = origin.network().state_dict()
        assert all(torch.equal(loaded[k], v) for k, v in read_state(path).items())


def test_weights_that_match_in_part_are_refused_unless_allowed(run: Path) -> None:
    path = run / "distill" / "kd" / "student.safetensors"
    state = load_file(path)
    del state["layer1.0.conv1.weight"]
    save_file(state, path)
    with pytest.raises(UserError, match=r"distill/kd: only 9\d\.\d % of the encoder"):
        open_origin(str(run / "distill" / "kd")).encoder()
    taken = open_origin(str(run / "distill" / "kd"), allow_partial=True).encoder()
    assert 90 < taken.matched_percent < 100


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused(run: Path, value: float) -> None:
    path = run / "distill" / "kd" / "student.safetensors"
    state = load_file(path)
    state["layer1.0.conv1.weight"][0, 0, 0, 0] = value
    save_file(state, path)
    origin = open_origin(str(run / "distill" / "kd"))
    origin.encoder(weights=False)
    for build in (origin.encoder, origin.network):
        with pytest.raises(UserError, match=r"distill/kd: not all values of 'layer1\.0\.conv1\.w"):
            build()


def test_other_architecture_is_refused(run: Path, tmp_path: Path) -> None:
    torch.save(models.build("resnet20", num_classes=3).state_dict(), tmp_path / "r20.pth")
    # Every tensor of a resnet14 is in the file, with others beside them.
    with pytest.raises(UserError, match=r"resnet14@.*none of the network's, first 'layer1\.2\."):
        open_origin(f"resnet14@{tmp_path / 'r20.pth'}")
    with pytest.raises(UserError, match=r"resnet32@.*only \d+\.\d %"):
        open_origin(f"resnet32@{tmp_path / 'r20.pth'}").encoder()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("nothing", "'nothing' is no encoder"),
        ("resnet8@nothing.pth", "weights 'nothing.pth' are neither a file"),
        ("resnet9@nothing.pth", "resnet9"),
        ("torchvision:resnet19@DEFAULT", "resnet19"),
    ],
)
def test_what_is_no_origin_is_named(given: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_origin(given)


def test_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a run directory nor a bundle"):
        open_origin(str(tmp_path))


def test_architecture_without_weights_serves_from_scratch_alone() -> None:
    origin = open_origin("torchvision:resnet18")
    assert origin.encoder(weights=False).stride == 32
    with pytest.raises(UserError, match="names no weights"):
        origin.encoder()
