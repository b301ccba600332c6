"""Linear probe: how well a linear classifier reads new classes off the frozen encoder.

The encoder stays in eval mode without gradient, so its batch-norm statistics are those of the
distillation. Its last map is averaged over the image once per picture; each channel is then
shifted and scaled by the training pictures' mean and standard deviation, which makes one learning
rate fit distilled and random encoders alike; the linear layer is trained on these features in THE
loop. The metric is top-1 accuracy of the last epoch on the test pictures, in percent.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from compress.data import Dataset, Images, evaluation_batches, open_data
from compress.deployment import Encoder, load_encoder
from compress.randomness import seeded
from compress.ranks import gathered, own_share, part
from eval.batches import KeyedBatches
from eval.context import Context, Start, compare_inits, fine_tune, opened, result
from eval.digit_scenes import prepare

PROTOCOL = (
    "top-1 accuracy on the test pictures after the last epoch, of one linear layer trained on the "
    "frozen encoder's average-pooled, standardised features"
)
_FEATURE_BATCH = 256


def linear_probe(context: Context) -> dict[str, Any]:
    """Run the probe for every init."""
    preprocessing = load_encoder(context.students[context.main], weights=False).preprocessing
    dataset = _open(context, preprocessing.image_size)

    def evaluate(start: Start) -> dict[str, float]:
        return _probe(context, start, dataset)

    rows = compare_inits(context, evaluate)
    return result(
        context,
        rows,
        protocol=PROTOCOL,
        headline="top1_percent",
        train_images=len(dataset.train),
        test_images=len(dataset.test),
    )


def digit_scenes(folder: Path, *, classes: int = 10, seed: int = 0) -> Mapping[str, Any]:
    """Single digits on new backgrounds, as an image folder."""
    root, _ = prepare(
        folder, classes=classes, train_images=1, test_images=1, image_size=64, seed=seed
    )
    return {"name": "image_folder", "root": str(root / "crops")}


def image_folder(
    folder: Path,
    *,
    root: str,
    classes: int | None = None,
    train_images: int | None = None,
    test_images: int | None = None,
    seed: int | None = None,
) -> Mapping[str, Any]:
    """`root/train/CLASS/*` and `root/test/CLASS/*`, or class-balanced subsets of them."""
    return {
        "name": "image_folder",
        "root": root,
        "classes": classes,
        "train_images": train_images,
        "test_images": test_images,
        "seed": seed,
    }


# Each gives the description of the data that compress.data opens.
DATASETS: Mapping[str, Callable[..., Mapping[str, Any]]] = {
    "digit_scenes": digit_scenes,
    "image_folder": image_folder,
}


def _open(context: Context, image_size: int) -> Dataset:
    """The pictures at the size on which the encoder was trained."""
    arguments = dict(context.data)
    make = DATASETS[arguments.pop("name")]
    spec = opened(context, lambda folder: make(folder, **arguments))
    return open_data({**spec, "image_size": image_size}, seed=context.seed)


def _probe(context: Context, start: Start, dataset: Dataset) -> dict[str, float]:
    encoder = start.encoder.to(context.device)
    train_features, train_labels = pooled_features(encoder, dataset.train, context.device)
    test_features, test_labels = pooled_features(encoder, dataset.test, context.device)
    mean, deviation = train_features.mean(0), train_features.std(0).clamp_min(1e-6)
    train_features, test_features = (
        (features - mean) / deviation for features in (train_features, test_features)
    )
    with seeded(context.seed, "linear_probe", "head"):
        head = nn.Linear(encoder.channels, len(dataset.class_names)).to(context.device)

    def collate(indices: list[int]) -> tuple[Tensor, Tensor]:
        chosen = torch.tensor(indices, device=context.device)
        return train_features[chosen], train_labels[chosen]

    batches = KeyedBatches(
        count=len(train_labels),
        batch_size=context.settings.batch_size,
        seed=context.seed,
        flip=False,
        read=lambda index, _: index,
        collate=collate,
    )
    fine_tune(context, start, ProbeLoss(head), batches, "linear probe")
    with torch.no_grad():
        correct = (head(test_features).argmax(1) == test_labels).sum()
    return {"top1_percent": 100 * int(correct) / len(test_labels)}


@torch.no_grad()
def pooled_features(
    encoder: Encoder, images: Images, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Features (N, channels) float32 and labels (N,) of all images, encoder in eval mode.

    Each of several processes computes whole batches of them, and all get all.
    """
    encoder.eval()
    batches = torch.split(torch.arange(len(images)), _FEATURE_BATCH)
    features = [torch.empty(0, encoder.channels, device=device)]  # where there are few images
    if own := batches[part(len(batches))]:
        share = images.subset(torch.cat(own))
        shown = evaluation_batches(share, _FEATURE_BATCH, encoder.preprocessing, device)
        features += [encoder(pixels).float().mean((2, 3)) for pixels, _ in shown]
    return gathered(torch.cat(features)), images.labels.to(device)


class ProbeLoss(nn.Module):
    """Cross-entropy of the linear head on cached features."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head = head

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """batch is features (N, C) and labels (N,); the term is this process's share."""
        features, labels = batch
        loss = functional.cross_entropy(self.head(features), labels)
        return {"ce": own_share(len(labels)) * loss}
