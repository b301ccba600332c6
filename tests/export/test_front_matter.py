"""The model card's front matter, read by the hub's own client."""

from typing import Any

import pytest
import yaml

from export.bundle.front_matter import front_matter

huggingface_hub = pytest.importorskip("huggingface_hub")


def facts(**changes: Any) -> dict[str, Any]:
    """Of a classifier of CIFAR-100; `changes` are of the student's description and of the facts."""
    student = {
        "num_classes": changes.pop("num_classes", 100),
        "distillation": {"method": {"name": "simkd"}},
        "architecture": {"name": "resnet8", "arguments": {}},
        "taps": {},
    }
    return {
        "student": {**student, **changes.pop("student", {})},
        "name": "simkd: 2\nb",
        "license": None,
        "data": {"name": "cifar100"},
        "teachers": [{"model": "resnet32x4"}],
        "parity": {"images": 10_000, "onnx_top1_percent": 75.25},
        "int8": {"images": 10_000, "onnx_top1_percent": 74.5},
        **changes,
    }


def test_a_classifiers_numbers_are_what_the_hub_reads() -> None:
    card = huggingface_hub.ModelCard(f"{front_matter(facts())}\n# A card\n")
    data = card.data.to_dict()
    assert data["license"] == "unknown" and data["library_name"] == "onnx"
    assert data["pipeline_tag"] == "image-classification"
    assert data["datasets"] == ["uoft-cs/cifar100"] and data["metrics"] == ["accuracy"]
    assert {"onnx", "knowledge-distillation", "simkd", "int8"} <= {*data["tags"]}
    assert "base_model" not in data, "the teacher is not on the hub"
    assert "\n" not in card.data.model_name and card.data.model_name.startswith("simkd: 2")
    found = {r.metric_name: r for r in card.data.eval_results}
    assert found.keys() == {
        "top-1 accuracy of student.onnx",
        "top-1 accuracy of student.int8.onnx",
    }
    one = found["top-1 accuracy of student.onnx"]
    assert (one.metric_type, one.metric_value, one.task_type) == (
        "accuracy",
        0.7525,
        "image-classification",
    )
    assert (one.dataset_type, one.dataset_split) == ("uoft-cs/cifar100", "test")


def test_of_own_images_no_data_set_is_named_and_of_int8_nothing_where_there_is_none() -> None:
    text = front_matter(facts(data={"name": "image_folder"}, int8=None, license="apache-2.0"))
    data = huggingface_hub.ModelCard(text).data
    assert data.license == "apache-2.0" and "datasets" not in data.to_dict()
    assert "int8" not in data.tags
    (one,) = data.eval_results
    assert one.dataset_name == "image_folder, 10000 test images"


def test_a_teacher_of_timm_is_the_base_where_its_weights_have_a_name() -> None:
    models = ["timm:resnet50.a1_in1k", "timm:resnet18", "torchvision:resnet50", "own.net:make"]
    text = front_matter(facts(teachers=[{"model": model} for model in models]))
    assert yaml.safe_load(text.split("---")[1])["base_model"] == ["timm/resnet50.a1_in1k"]


@pytest.mark.parametrize("kind", ["segments", "embeds"])
def test_other_tasks(kind: str) -> None:
    parity = {"images": 5, "onnx_miou_percent": 50.0}
    made = {
        "segments": facts(parity=parity, int8=None, student={"taps": {"logits_map": {}}}),
        "embeds": facts(parity={"images": 5}, int8=None, num_classes=0),
    }[kind]
    data = huggingface_hub.ModelCard(front_matter(made)).data
    if kind == "embeds":
        assert data.pipeline_tag == "image-feature-extraction" and not data.eval_results
    else:
        assert data.pipeline_tag == "image-segmentation"
        assert (data.eval_results[0].metric_type, data.eval_results[0].metric_value) == (
            "mean_iou",
            0.5,
        )
