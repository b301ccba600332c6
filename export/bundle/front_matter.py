"""The model card's front matter, as the Hugging Face Hub reads it.

Keys: https://huggingface.co/docs/hub/model-cards and, for `model-index`, the format of Papers with
Code that it took over.
"""

import json
from collections.abc import Mapping
from typing import Any

import yaml

from compress.model_files.artifacts import is_dense
from compress.text import one_line
from export.bundle.contents import INT8, embeds

# Data sets that the hub has under a name of its own.
_DATASETS = {"cifar100": "uoft-cs/cifar100"}
# Metric: the hub's name of it, in words, and its key in the parity of a file.
_TOP1 = ("accuracy", "top-1 accuracy", "onnx_top1_percent")
_MIOU = ("mean_iou", "mean IoU", "onnx_miou_percent")


def front_matter(facts: Mapping[str, Any]) -> str:
    """The YAML between two lines of `---`.

    Args:
        facts: see `export.bundle.card.model_card`.
    """
    content = yaml.safe_dump(_metadata(facts), sort_keys=False, allow_unicode=True, width=1000)
    return f"---\nlicense: {json.dumps(facts['license'] or 'unknown')}\n{content}---\n"


def pipeline_tag(student: Mapping[str, Any]) -> str:
    """The hub's name of the task of a described student."""
    if is_dense(student):
        return "image-segmentation"
    return "image-feature-extraction" if embeds(student) else "image-classification"


def _metadata(facts: Mapping[str, Any]) -> dict[str, Any]:
    student, data = facts["student"], str(facts["data"].get("name"))
    metadata: dict[str, Any] = {
        "library_name": "onnx",
        "pipeline_tag": pipeline_tag(student),
        "tags": _tags(facts),
    }
    bases = [base for row in facts["teachers"] if (base := _on_the_hub(row))]
    if bases:
        metadata["base_model"] = bases
    if data in _DATASETS:
        metadata["datasets"] = [_DATASETS[data]]
    if not embeds(student):
        metric = _MIOU if is_dense(student) else _TOP1
        metadata["metrics"] = [metric[0]]
        metadata["model-index"] = [
            {
                "name": one_line(str(facts["name"])),
                "results": [
                    {
                        "task": {"type": pipeline_tag(student)},
                        "dataset": {
                            "name": f"{one_line(data)}, {facts['parity']['images']} test images",
                            "type": _DATASETS.get(data, data),
                            "split": "test",
                        },
                        "metrics": _metrics(facts, *metric),
                    }
                ],
            }
        ]
    return metadata


def _tags(facts: Mapping[str, Any]) -> list[str]:
    method = one_line(str(facts["student"]["distillation"]["method"]["name"]))
    int8 = [] if facts["int8"] is None else ["int8"]
    return ["onnx", "vision", "knowledge-distillation", method, *int8, "compress"]


def _on_the_hub(teacher: Mapping[str, Any]) -> str | None:
    """The hub's name of a teacher's weights: timm publishes NAME.TAG as timm/NAME.TAG."""
    model = str(teacher.get("model"))
    name = model.removeprefix("timm:")
    return f"timm/{name}" if model.startswith("timm:") and "." in name else None


def _metrics(facts: Mapping[str, Any], kind: str, words: str, key: str) -> list[dict[str, Any]]:
    """Of each file, as the hub has it: a share of 1."""
    files = {"student.onnx": facts["parity"], INT8: facts["int8"]}
    return [
        {"type": kind, "value": round(row[key] / 100, 6), "name": f"{words} of {file}"}
        for file, row in files.items()
        if row is not None
    ]
