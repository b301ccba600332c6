"""The program in a model card: run as it stands there, it says what predict.py says."""

import json
import re
from pathlib import Path

import pytest

from export.bundle.snippet import snippet
from tests.export.toy_bundles import SIZE, make, picture, told

_BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def run_snippet(
    source: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[str, float]:
    """What the program prints in a bundle's folder: a label and its probability."""
    capsys.readouterr()
    monkeypatch.chdir(folder)
    exec(compile(source, "snippet", "exec"), {})
    label, _, probability = capsys.readouterr().out.strip().rpartition(" ")
    return label, float(probability)


@pytest.mark.parametrize("raw", [False, True])
# Sides as large as the square, larger by odd and even numbers, and smaller.
@pytest.mark.parametrize("resize", [0, SIZE, SIZE + 2, SIZE + 3, SIZE - 3, SIZE - 4])
def test_it_says_what_predict_says(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raw: bool,
    resize: int,
) -> None:
    bundle = make(tmp_path / "bundle", raw=raw, resize=resize)
    source = snippet(json.loads((bundle / "preprocess.json").read_text()))
    for seed, size in enumerate([(SIZE, SIZE)] if not resize else [(31, 22), (10, 24), (7, 6)]):
        file = picture(tmp_path / f"{seed}.png", size, seed)
        (expected,) = told(capsys, [bundle, file, "--top", "1"])
        (bundle / "image.png").write_bytes(file.read_bytes())
        label, probability = run_snippet(source, bundle, monkeypatch, capsys)
        (bundle / "image.png").unlink()
        best = expected["predictions"][0]
        assert (label, probability) == (best["class"], pytest.approx(best["probability"], rel=1e-5))


@pytest.mark.parametrize(("resize", "lines"), [(0, 10), (SIZE + 3, 14)])
def test_it_is_short_and_in_no_need_of_torch(resize: int, lines: int) -> None:
    preprocess = {
        "image_size": SIZE,
        "resize": resize,
        "layout": "NCHW",
        "divide_by": 255.0,
        "mean": [0.5, 0.4, 0.3],
        "std": [0.25, 0.2, 0.3],
    }
    source = snippet(preprocess)
    assert len(source.splitlines()) <= lines
    assert all(len(line) <= 100 for line in source.splitlines())
    assert set(re.findall(r"(?:import|from) (\w+)", source)) == {"numpy", "PIL", "Image"}
    assert "onnxruntime, pathlib" in source


def block_of(card: str) -> str:
    """The program in a model card."""
    (block,) = _BLOCK.findall(card)
    assert isinstance(block, str)
    return block
