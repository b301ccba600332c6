"""Frozen teachers: fast inference, int8, the cache of their outputs.

>>> import torch
>>> from compress.models import build
>>> from compress.taps import Tapped, discover
>>> from compress.teacher import measure_tap_differences, make_fast
>>> network, images = build("resnet8", num_classes=4).eval(), torch.rand(2, 3, 8, 8)
>>> specs = discover(network, (3, 8, 8), "teacher")
>>> fast = make_fast(network, specs, ["pooled", "logits"], compile=False, precision="float32")
>>> fast(images).tensor("pooled").shape
torch.Size([2, 64])
>>> changes = measure_tap_differences(fast, Tapped(network, specs, ["pooled", "logits"]), images)
>>> changes["pooled"] < 0.01, changes["same_class_percent"]
(True, 100.0)
"""

from compress.teacher.inference import FastTeacher, Precision, make_fast, measure_tap_differences
from compress.teacher.settings import CacheSettings, InferenceSettings, Teacher, TeacherImages

__all__ = [
    "CacheSettings",
    "FastTeacher",
    "InferenceSettings",
    "Precision",
    "Teacher",
    "TeacherImages",
    "make_fast",
    "measure_tap_differences",
]
