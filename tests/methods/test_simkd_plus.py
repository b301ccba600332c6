"""SimKD+: where it cuts, what it copies, its term by a loop, and what ships without a teacher."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from compress import model_files
from compress.accounting import account_pair
from compress.errors import UserError
from compress.methods import LossWeights
from compress.methods.simkd import SimKD
from compress.methods.simkd_plus import SimKDPlus
from compress.models import build, fold_batchnorm
from compress.storage.files import read_json, write_json
from compress.taps import Tapped, TapSpecs, discover
from tests.methods import building


def may_refuse(teacher: TapSpecs, student: TapSpecs) -> bool:
    """See test_pairs: no map of the student can be pooled to the one at the cut."""
    target = teacher.stages[-2]
    return all(
        spec is None or spec.height % target.height for spec in (*student.stages, student.last_map)
    )


def _method(**arguments: Any) -> SimKDPlus:
    student, teachers = building.networks()
    return SimKDPlus(building.context(student, teachers), **arguments)


def test_by_default_the_last_stage_is_reused() -> None:
    method = _method()
    assert (method.cut.path, method.student_cut.path) == ("layer2", "layer2")
    assert (method.student_taps, method.teacher_taps) == (("layer2",), ("layer2",))
    assert {name.split(".")[1] for name, _ in method.tail.named_parameters()} == {"layer3", "fc"}


def test_the_term_is_the_mean_squared_difference_at_the_cut() -> None:
    module = building.distillation(SimKDPlus).double().eval()
    teacher = module._teachers[0].network.double()
    batch = building.first_batch(module)
    images = batch.images[0].double()
    (value,) = module(replace(batch, images=(images,))).values()
    own = Tapped(module.student, module.method.context.student, ("layer2",))(images)
    known = Tapped(teacher, module.method.context.teachers[0].taps, ("layer2",))(images)
    projected = module.method.projector(own.tensor("layer2"))  # type: ignore[operator]
    pairs = zip(
        projected.flatten().tolist(), known.tensor("layer2").flatten().tolist(), strict=True
    )
    squares = [(p - t) ** 2 for p, t in pairs]
    assert float(value.detach()) == pytest.approx(sum(squares) / len(squares), rel=1e-10)


def test_cut_at_the_last_map_it_is_simkd() -> None:
    student, teachers = building.networks()
    context = building.context(student, teachers)
    torch.manual_seed(0)
    plus = SimKDPlus(context, cut="layer3").eval()
    torch.manual_seed(0)
    plain = SimKD(context).eval()
    images = torch.randn(3, *building.SHAPE)
    own = plus.deploy(student.eval()).eval()(images)
    torch.testing.assert_close(own, plain.deploy(student).eval()(images))


def test_a_perfect_projection_has_the_teachers_logits() -> None:
    module = building.distillation(SimKDPlus).eval()
    images = torch.randn(2, *building.SHAPE)
    with torch.no_grad():
        teacher = module._teachers[0]
        known = Tapped(teacher.network, teacher.specs, ("layer2", "logits"))(images)
        logits = module.method.tail(known.tensor("layer2"))  # type: ignore[operator]
    torch.testing.assert_close(logits, known.tensor("logits"))


def test_the_copy_is_frozen_and_its_batch_norm_never_moves() -> None:
    weights = LossWeights(ce=1, kd=1, method=1)
    module = building.distillation(SimKDPlus, weights=weights)
    method, batch = module.method, building.first_batch(module)
    assert isinstance(method, SimKDPlus)
    before = copy.deepcopy(method.tail.state_dict())
    module.begin_phase(None, batch)
    module.train()
    assert not any(m.training for m in method.tail.modules())
    for value in module(batch).values():
        value.backward(retain_graph=True)
    assert not any(p.requires_grad or p.grad is not None for p in method.tail.parameters())
    assert all(torch.equal(v, before[k]) for k, v in method.tail.state_dict().items())
    known = {p.data_ptr() for p in module._teachers[0].network.parameters()}
    assert not known & {p.data_ptr() for p in method.parameters()}


def test_layers_of_the_student_after_the_cut_neither_learn_nor_ship() -> None:
    module = building.distillation(SimKDPlus)
    module.begin_phase(None, building.first_batch(module))
    learning = {n.split(".")[1] for n, p in module.named_parameters() if p.requires_grad}
    assert learning == {"conv1", "bn1", "layer1", "layer2", "projector"}
    shipped = module.method.deploy(module.student).state_dict()
    assert {name.split(".")[1] for name in shipped if name.startswith("encoder.")} == {
        *("conv1", "bn1", "layer1", "layer2"),
    }


# resnet32x4 -> resnet8x4 with r = 2; the paper prints 19.21 and 15.97 (Table S.10), cut off.
@pytest.mark.parametrize(
    ("cut", "ratio"), [("layer3", 80.5275), ("layer2", 19.1539), ("layer1", 3.7984)]
)
def test_pruning_ratios_of_the_papers_pair(cut: str, ratio: float) -> None:
    found = account_pair(
        teacher="resnet32x4",
        student="resnet8x4",
        method={"name": "simkd_plus", "cut": cut},
        num_classes=100,
    )
    assert found["pruning_ratio_percent"] == pytest.approx(ratio, abs=1e-4)
    assert found["deployed_uncounted_operators"] == {}


def test_where_no_relu_makes_the_teachers_map_the_projector_ends_without_one() -> None:
    assert isinstance(_method().projector[-1], torch.nn.ReLU)
    student, teacher = build("resnet8", num_classes=5), build("mobilenetv2", num_classes=5)
    method = SimKDPlus(building.context(student, [teacher]), cut="blocks.1")
    assert isinstance(method.projector[-1], torch.nn.BatchNorm2d)


def _save(folder: Path) -> torch.nn.Module:
    module = building.distillation(SimKDPlus).train()
    for batch in building.batches(module.method).epoch(0):
        module(batch)
    shipped = module.method.ship(module.student).eval()
    description = model_files.describe(
        {"name": "resnet8", "arguments": {}},
        module.method.encoder_taps(),
        tuple("abcde"),
        building.PREPROCESSING,
        metrics={},
        fingerprint="f",
    )
    description["method"] = model_files.describe_method(module.method, "simkd_plus", {})
    description["encoder_prefix"] = "encoder."
    model_files.save(folder, "student", shipped, description)
    return shipped


def test_it_is_rebuilt_without_the_teacher_and_gives_up_its_encoder(tmp_path: Path) -> None:
    shipped = _save(tmp_path)
    loaded = model_files.load_student(tmp_path)
    images = torch.randn(4, *building.SHAPE)
    with torch.no_grad():
        expected = shipped(images)
        assert torch.equal(loaded.network(images), expected)
        folded = fold_batchnorm(loaded.network)
        assert folded.not_folded == []
        torch.testing.assert_close(folded.network(images), expected, rtol=1e-4, atol=1e-4)
    encoder = model_files.load_encoder(tmp_path)
    assert (encoder.matched_percent, encoder.channels, encoder.stride) == (100, 32, 2)
    with torch.no_grad():
        maps = encoder.eval()(images)
        assert torch.equal(maps, shipped.get_submodule("encoder")(images))


def test_a_reused_network_is_checked_as_any_other_that_a_file_names(tmp_path: Path) -> None:
    _save(tmp_path)
    content = read_json(tmp_path / "student.json")
    (teacher,) = content["method"]["teachers"]
    for architecture, words in (
        ({"name": "evil.py:network", "arguments": {}}, "is built by code of its own, 'evil.py"),
        ({"name": "resnet8x4", "arguments": {"depth": 10}}, "architecture.arguments"),
    ):
        teacher["network"]["architecture"] = architecture
        write_json(tmp_path / "student.json", content)
        with pytest.raises(UserError, match=words):
            model_files.load_student(tmp_path)
    del teacher["network"]
    write_json(tmp_path / "student.json", content)
    with pytest.raises(UserError, match="copies layers of the teacher, whose network is not here"):
        model_files.load_student(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"cut": "layer4"}, r"cut 'layer4' is none of the teacher's stage maps.*layer3"),
        ({"student_cut": "fc"}, "student_cut 'fc' is none of the student's stage maps"),
        ({"student_cut": "layer3"}, "smaller than the 8 x 8 that the reused layers read"),
        ({"reduction": 0}, "reduction is 1 to 128, got 0"),
        ({"projector": "vector"}, "reused layers read a map"),
    ],
)
def test_what_cannot_be_cut_is_refused_in_words(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        _method(**arguments)


def test_a_cut_inside_a_block_is_refused_in_words() -> None:
    student, (teacher,) = building.networks()
    context = building.context(student, [teacher])
    inside = discover(teacher, building.SHAPE, "teacher", stages=["layer1", "layer2.0.bn1"])
    known = replace(context.teachers[0], taps=inside)
    context = replace(context, teachers=(known,))
    with pytest.raises(UserError, match=r"also reads 'layer2\.0\.downsample"):
        SimKDPlus(context, cut="layer2.0.bn1")
