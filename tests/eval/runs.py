"""A run directory with two students, without any training."""

from pathlib import Path

from compress import model_files, models
from compress.data import Preprocessing
from compress.taps import discover

SHOWN = Preprocessing(16, (0.3, 0.3, 0.3), (0.3, 0.3, 0.3))

RESOLVED = """\
data: {name: digits}
teacher: {model: resnet8, checkpoint: teacher.safetensors}
student: {model: resnet8}
distill: {method: {name: kd}, train: {epochs: 1, lr: 0.1}, compare: [none]}
"""


def write_run(folder: Path) -> Path:
    """The students `kd` (shipped) and `none` and a teacher, with weights of other seeds."""
    places = (("distill/kd", "student"), ("distill/none", "student"), ("teacher/0", "teacher"))
    for seed, (place, name) in enumerate(places, 1):
        network = models.build("resnet8", num_classes=3, seed=seed)
        (folder / place).mkdir(parents=True)
        description = model_files.describe(
            {"name": "resnet8", "arguments": {}},
            discover(network, (3, 16, 16), "resnet8"),
            ("a", "b", "c"),
            SHOWN,
            metrics={},
            fingerprint="",
        )
        label = "teacher" if name == "teacher" else Path(place).name
        description |= {"method": None, "encoder_prefix": "", "label": label}
        model_files.save(folder / place, name, network, description)
    (folder / "resolved.yaml").write_text(RESOLVED)
    return folder
