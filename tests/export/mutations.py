"""Seeded changes to a bundle, as somebody who wants to do harm might make them."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.export import bundles

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3, 2**31, 10**12, 10**30, -(10**9), 0.5, 1e308, "", "x", "1"),
    *("../../x", "\ud800", "a" * 5000, [], [None], [1, 2, 3], {}, {"x": 1}, [[[[]]]]),
)
# Modules and files of the folder that a test works in; importing any leaves a file there.
CODE = ("evil.py:net", "./evil.py:net", "evil:net", "evil_package.inner:net", "evil_package:net")
NAMES = (
    *CODE,
    *("torch.hub:load", "os:system", "subprocess:run", "__main__:main", "sys:exit", ":", "a:", "x"),
    *("resnet14", "resnet8x4", "vgg8", "torchvision:resnet18", "torchvision:resnet18:x", "timm:x"),
    *("timm:hf-hub:x/y", "timm:local-dir:.", "timm:resnet10t", "", "\0.py:net"),
    "a" * 300 + ".py:net",
)
ARGUMENTS: tuple[dict[str, Any], ...] = (
    {"num_classes": 3},
    {"depth": 10**6},
    {"widths": [10**9] * 4},
    {"weights": "DEFAULT"},
    {"pretrained": True},
    {"checkpoint_path": "evil.pth"},
    {"name": "x", "seed": 1},
    {"width": 1e999},
)
SCRIPT = "from pathlib import Path\nPath({!r}).touch()\ndef net(**_): raise SystemExit\n"


def plant(folder: Path) -> Path:
    """Write the modules that `CODE` names; returns the file that is there once one has run."""
    sentinel = folder / "ran"
    (folder / "evil.py").write_text(SCRIPT.format(str(sentinel)))
    (folder / "evil_package").mkdir()
    for name in ("__init__", "inner"):
        (folder / "evil_package" / f"{name}.py").write_text(SCRIPT.format(str(sentinel)))
    return sentinel


def changed(whole: Path, folder: Path, seed: int) -> Path:
    """A copy of a bundle with one to three changes, its manifest written anew."""
    bundle = Path(shutil.copytree(whole, folder))
    draw = random.Random(seed)
    kind = draw.choice((_architecture, _description, _description, _description, _file, _manifest))
    kind(bundle, draw)
    return bundle


def _architecture(bundle: Path, draw: random.Random) -> None:
    content = json.loads((bundle / "student.json").read_text())
    content["architecture"]["name"] = draw.choice(NAMES)
    if draw.random() < 0.3:
        content["architecture"]["arguments"] = draw.choice(ARGUMENTS)
    code = draw.choice((None, {}, False, {"file": "x"}, {"file": "x", "sha256": "0" * 64}, "lack"))
    content["code"] = code
    if code == "lack":
        del content["code"]
    (bundle / "student.json").write_text(json.dumps(content))
    bundles.listed(bundle)


def _description(bundle: Path, draw: random.Random) -> None:
    for _ in range(draw.randint(1, 3)):
        _spoil(bundle / draw.choice(("student.json",) * 5 + ("preprocess.json",)), draw)
    bundles.listed(bundle)


def _manifest(bundle: Path, draw: random.Random) -> None:
    for _ in range(draw.randint(1, 2)):
        _spoil(bundle / "manifest.json", draw)


def _file(bundle: Path, draw: random.Random) -> None:
    path = bundle / draw.choice(sorted(p.name for p in bundle.iterdir()))
    content = bytearray(path.read_bytes())
    change: Callable[[bytearray, random.Random], bytes] = draw.choice((_flip, _cut, _nest))
    path.write_bytes(change(content, draw))
    if path.name != "manifest.json":
        bundles.listed(bundle)


def _flip(content: bytearray, draw: random.Random) -> bytes:
    for _ in range(draw.randint(1, 8)):
        # The beginning holds the structure.
        end = len(content) if draw.random() < 0.5 else min(len(content), 2000)
        content[draw.randrange(end)] ^= 1 << draw.randrange(8)
    return bytes(content)


def _cut(content: bytearray, draw: random.Random) -> bytes:
    return bytes(content[: draw.randrange(len(content))])


def _nest(content: bytearray, draw: random.Random) -> bytes:
    depth = draw.choice((10, 100, 100_000))
    nested: bytes = b'{"format": 1, "x": ' + b"[" * depth + b"]" * depth + b"}"
    return nested


def _spoil(path: Path, draw: random.Random) -> None:
    """Change one value of a JSON file: deleted, replaced, named otherwise, or one added."""
    content = json.loads(path.read_text())
    if not isinstance(content, dict):
        return
    place: Any = content
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return
        key = draw.choice(keys)
        if not isinstance(place[key], dict | list) or not place[key] or draw.random() < 0.25:
            break
        place = place[key]
    action = draw.randrange(6)
    if action == 0:
        del place[key]
    elif action == 1 and isinstance(place, dict):
        place[draw.choice(("x", "bytes", "../x", "/etc/passwd"))] = draw.choice(VALUES)
    elif action == 2 and isinstance(place[key], int):
        place[key] *= draw.choice((-1, 2, 1000, 10**9))
    else:
        place[key] = draw.choice(VALUES)
    path.write_text(json.dumps(content))
