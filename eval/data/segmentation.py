"""The data sets of segmentation by name: layouts of folders, and scenes of digits."""

from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

from compress.data.dense.layouts import LAYOUTS, voc_segmentation
from compress.data.dense.masked_images import SegmentationData
from eval.data.digit_scenes import digit_scenes_read_by


def _offered_a_folder(read: Callable[..., SegmentationData]) -> Callable[..., SegmentationData]:
    """A layout as transfer tasks open data sets; it writes nothing to the folder."""

    @wraps(read)
    def opened(folder: Path, **arguments: Any) -> SegmentationData:
        return read(**arguments)

    return opened


DATASETS: Mapping[str, Callable[..., SegmentationData]] = {
    **{name: _offered_a_folder(read) for name, read in LAYOUTS.items()},
    "digit_scenes": digit_scenes_read_by(
        lambda folder, names: voc_segmentation(root=str(folder), classes=("background", *names)),
        usual_classes=4,
    ),
}
