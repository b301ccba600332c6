"""Encoders: networks without classifier, and the files of self-supervised training."""

import pytest
import torch
from torch import Tensor, nn

from compress.errors import UserError
from compress.model_files.encoders import encoder_tensors, load_encoder_weights
from compress.models import build
from compress.taps import Tapped, discover

State = dict[str, Tensor]


def prefixed(prefix: str, state: State) -> State:
    return {f"{prefix}{key}": value for key, value in state.items()}


def mlp(name: str, width: int = 64) -> State:
    head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 8))
    return prefixed(f"{name}.", head.state_dict())


def saved(kind: str, encoder: State) -> dict[str, object]:
    """A checkpoint as the released code of a method writes it, with its heads."""
    moco = {**encoder, **mlp("fc")}
    if kind == "moco":
        keys = {key: value + 1 for key, value in moco.items()}  # another network
        both = {**prefixed("encoder_q.", moco), **prefixed("encoder_k.", keys)}
        state = prefixed(
            "module.", {**both, "queue": torch.zeros(8, 4), "queue_ptr": torch.ones(1)}
        )
        return {"epoch": 200, "arch": "resnet50", "state_dict": state, "optimizer": {}}
    if kind == "swav":
        heads = {**mlp("projection_head"), "prototypes.weight": torch.zeros(3, 8)}
        return prefixed("module.", {**encoder, **heads})
    if kind == "dino":
        teacher = {**prefixed("backbone.", encoder), **mlp("head")}
        student = prefixed("module.", {k: v + 1 for k, v in teacher.items()})
        return {"student": student, "teacher": teacher, "epoch": 3}
    return {"supervised": {**encoder, "fc.weight": torch.zeros(9, 64)}, "bare": encoder}[kind]


@pytest.mark.parametrize("kind", ["moco", "swav", "dino", "supervised", "bare"])
def test_the_encoder_of_a_checkpoint_is_loaded_and_what_is_left_out_is_said(
    kind: str, tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, network = (build("resnet8", num_classes=0, seed=s) for s in (1, 2))
    path = tmp_path / "weights.pth"
    torch.save(saved(kind, dict(source.state_dict())), path)
    load_encoder_weights(network, "resnet8", str(path))
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(network.eval()(images), source.eval()(images))
    printed = " ".join(capsys.readouterr().out.split())
    said = {"moco": "fc (4 tensors)", "swav": "prototypes (1 tensors)", "dino": "head (4 tensors)",
            "supervised": "fc (1 tensors)", "bare": ""}[kind]  # fmt: skip
    assert said in printed and (kind != "bare" or "left out" not in printed)


def test_without_a_head_all_of_a_file_is_the_networks() -> None:
    network = build("resnet8", num_classes=0)
    state = {**network.state_dict(), "fc.weight": torch.zeros(9, 64)}
    assert encoder_tensors(state, network, "none")[2] == {}
    assert "fc.weight" in encoder_tensors(state, network, "none")[1]
    _, kept, left_out = encoder_tensors(state, network, "layer3")
    assert "fc.weight" in kept and list(left_out) == ["layer3"]


ZOO = ("resnet8", "vgg8", "mobilenetv2", "shufflenetv1", "wrn_16_1")
OTHERS = ("torchvision:resnet18", "torchvision:mobilenet_v3_small")


@pytest.mark.parametrize("name", [*ZOO, *OTHERS])
def test_an_encoder_gives_what_the_classifier_of_its_architecture_reads(name: str) -> None:
    size = 64 if ":" in name else 32
    whole, encoder = build(name, num_classes=7).eval(), build(name, num_classes=0).eval()
    with_classifier = discover(whole, (3, size, size), name)
    specs = discover(encoder, (3, size, size), name, embeds=True)
    kept = {k: v for k, v in whole.state_dict().items() if k in encoder.state_dict()}
    encoder.load_state_dict(kept)
    images = torch.randn(2, 3, size, size)
    expected = Tapped(whole, with_classifier, ["pooled"])(images).tensor("pooled")
    assert torch.equal(encoder(images), expected)
    assert torch.equal(Tapped(encoder, specs, ["pooled"])(images).tensor("pooled"), expected)
    assert (specs.pooled_width, specs.classifier, specs.output) == (
        expected.shape[1],
        None,
        "pooled",
    )
    assert specs.last_map == with_classifier.last_map
    with pytest.raises(UserError, match="gives no logits"):
        Tapped(encoder, specs, ["logits"])


def test_a_network_that_ends_in_no_linear_layer_is_refused() -> None:
    with pytest.raises(UserError, match="does not end in a linear layer"):
        build("torchvision:squeezenet1_0", num_classes=0)
    with pytest.raises(UserError, match=r"no module 'layr3'.*layer3"):
        build("resnet8", num_classes=0, head="layr3")
