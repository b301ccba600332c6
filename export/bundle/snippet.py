"""Ten lines of Python that classify, embed or segment an image with a bundle's file."""

from collections.abc import Mapping
from typing import Any

from export.bundle.contents import FLOAT

# With a resize: Pillow's, whose `resize` is antialiased, and the centre cut as in predict.py.
_CUT = """\
size = [int({side} * n / min(image.size)) for n in image.size]
left, top = ({start} for n in size)
image = image.resize(size, Image.Resampling.BILINEAR)
image = image.crop((left, top, left + {image_size}, top + {image_size}))
"""
_START = "round((n - {image_size}) / 2)"
_START_OF_SMALL = _START + " if n > {image_size} else -(({image_size} - n) // 2)"
_NORMALISED = """\
pixels = ((np.asarray(image) / {divide_by:g} - {mean}) / {std}).transpose(2, 0, 1)
images = pixels[None].astype(np.float32)  # (1, 3, {image_size}, {image_size})
"""
_RAW = """\
images = np.asarray(image)[None]  # uint8 (1, {image_size}, {image_size}, 3)
"""


_CLASSIFIED = """\
(logits,) = session.run(["logits"], {"images": images})
powers = np.exp(logits[0] - logits[0].max())  # softmax
labels = pathlib.Path("labels.txt").read_text("utf-8").split("\\n")
print(labels[powers.argmax()], powers.max() / powers.sum())
"""
_EMBEDDED = """\
(embedding,) = session.run(["embedding"], {"images": images})
print(embedding[0] / np.linalg.norm(embedding[0]))  # products of two are their cosine
"""
_SEGMENTED = """\
(logits,) = session.run(["logits"], {"images": images})
mask = logits[0].argmax(0)  # (height, width)
labels = pathlib.Path("labels.txt").read_text("utf-8").split("\\n")
for i, pixels in zip(*np.unique(mask, return_counts=True)):
    print(labels[i], pixels / mask.size)
"""
_ANY_SIZE = "height, width"


def snippet(preprocess: Mapping[str, Any], *, embeds: bool = False) -> str:
    """A program that names the class of `image.png`, or of its pixels, in the bundle's folder.

    Args:
        preprocess: the content of preprocess.json.
        embeds: the bundle gives embeddings; the program prints that of the image.
    """
    values = {**preprocess, "side": preprocess["resize"]}
    small = 0 < preprocess["resize"] < preprocess["image_size"]
    start = (_START_OF_SMALL if small else _START).format(**values)
    cut = _CUT.format(**values, start=start) if preprocess["resize"] else ""
    segments = bool(preprocess.get("any_size"))
    needed = "" if cut or segments else "  # {image_size} x {image_size} pixels".format(**values)
    is_raw = preprocess["layout"] == "NHWC"
    prepared = (_RAW if is_raw else _NORMALISED).format(**values)
    if segments:
        prepared = prepared.replace("{image_size}, {image_size}".format(**values), _ANY_SIZE)
    used = _SEGMENTED if segments else _EMBEDDED if embeds else _CLASSIFIED
    return (
        f"import numpy as np, onnxruntime{'' if embeds else ', pathlib'}\n"
        "from PIL import Image\n"
        f'image = Image.open("image.png").convert("RGB"){needed}\n'
        f"{cut}"
        f"{prepared}"
        f'session = onnxruntime.InferenceSession("{FLOAT}")\n'
        f"{used}"
    )
