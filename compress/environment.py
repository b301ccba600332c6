"""Versions and hardware behind a result, for the report."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

from compress import __version__


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware, for the report."""
    names = ("torch", "torchvision", "onnx", "onnxruntime", "numpy")
    versions = {name: importlib.metadata.version(name) for name in names}
    accelerator = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "compress": __version__,
        "python": platform.python_version(),
        **versions,
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device),
        "accelerator": accelerator,
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
