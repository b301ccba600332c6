"""The frozen encoder's features, computed once and kept in a file.

The encoder stays in eval mode without gradient, so its batch-norm statistics are those of the
distillation. Its last map is averaged over the image.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.console.messages import log
from compress.data import Dataset, Images, Preprocessing, evaluation_batches
from compress.distributed.collectives import all_gather, on_main_process, own_rows
from compress.errors import UserError
from compress.model_files.artifacts import Encoder
from compress.storage.files import read_tensors, write_tensors
from compress.storage.fingerprints import fingerprint_of
from compress.storage.integrity import put_aside
from eval.data.labelled import DATASETS
from eval.transfer.context import SCRATCH, Start, TransferContext, open_entry
from eval.transfer.paired import save_predictions

_BATCH = 256


@dataclass(frozen=True)
class Features:
    """Pooled features (N, channels) float32 and labels (N,) of the two splits."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor
    classes: int
    test_digest: str = ""  # of the test pictures

    def standardise(self) -> "Features":
        """Each channel shifted and scaled by the training pictures' mean and deviation."""
        mean, deviation = self.train.mean(0), self.train.std(0).clamp_min(1e-6)
        train, test = ((one - mean) / deviation for one in (self.train, self.test))
        return replace(self, train=train, test=test)


def open_pictures(context: TransferContext) -> Callable[[Preprocessing], Dataset]:
    """Gives the entry's pictures at the size on which a network was trained."""
    open_for = open_entry(context, DATASETS)
    return cache(lambda preprocessing: open_for(preprocessing, context.seed))


def features_of(context: TransferContext, start: Start, data: Dataset) -> Features:
    """The features of both splits, read where a file of the same encoder and data exists.

    Students keep one file for all seeds; a random encoder has one for each.
    """
    name = f"{SCRATCH}-{start.seed}" if start.init == SCRATCH else start.student
    path = context.folder / "features" / f"{name}.safetensors"
    encoder = start.encoder.to(context.device)
    digest = fingerprint_of(
        {
            "encoder": _digest(encoder),
            "preprocessing": encoder.preprocessing.as_dict(),
            "data": [data.train.version(), data.test.version()],
            "size": data.preprocessing.as_dict(),
        }
    )
    if not on_main_process(partial(_is_kept, path, digest)):
        pairs = zip(("train", "test"), (data.train, data.test), strict=True)
        pooled = {s: pooled_features(encoder, images, context.device) for s, images in pairs}
        write_tensors(path, pooled, {"digest": digest})
    else:
        pooled = read_tensors(path)[0]
    train, test = (pooled[split].to(context.device) for split in ("train", "test"))
    labels = [images.labels.to(context.device) for images in (data.train, data.test)]
    classes, images = len(data.class_names), data.test.digest()
    return Features(train, labels[0], test, labels[1], classes, images)


def class_probabilities(
    model: Any, features: Features, *, dtype: torch.dtype = torch.float32
) -> NDArray[np.float64]:
    """(N, K) of the test pictures, by a scikit-learn classifier fitted to the training pictures.

    Classes without a training picture have 0.
    """
    train, test = (one.cpu().to(dtype).numpy() for one in (features.train, features.test))
    model.fit(train, features.train_labels.cpu().numpy())
    probabilities = np.zeros((len(test), features.classes))
    probabilities[:, model.classes_] = model.predict_proba(test)
    return probabilities


def score_predictions(
    start: Start, features: Features, predicted: NDArray[Any], probabilities: NDArray[Any]
) -> dict[str, float]:
    """Save predicted classes (N,) and probabilities (N, K) of the test pictures; their top-1."""
    labels = features.test_labels.cpu().numpy()
    save_predictions(start.folder, labels, predicted, probabilities, features.test_digest)
    return {"top1_percent": 100 * int((predicted == labels).sum()) / len(labels)}


def _is_kept(path: Path, digest: str) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        return False
    try:
        return read_tensors(path)[1].get("digest") == digest
    except UserError as error:
        log(f"  {error}; it is now in {put_aside(path.parent, [path.name])}, and computed again")
        return False


def _digest(encoder: Encoder) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def pooled_features(encoder: Encoder, images: Images, device: torch.device) -> Tensor:
    """Features (N, channels) float32 of all images, encoder in eval mode.

    Each of several processes computes whole batches of them, and all get all.
    """
    encoder.eval()
    batches = torch.split(torch.arange(len(images)), _BATCH)
    features = [torch.empty(0, encoder.channels, device=device)]  # where there are few images
    if own := batches[own_rows(len(batches))]:
        share = images.subset(torch.cat(own))
        seen = evaluation_batches(share, _BATCH, encoder.preprocessing, device)
        features += [encoder(pixels).float().mean((2, 3)) for pixels, _ in seen]
    return all_gather(torch.cat(features))
