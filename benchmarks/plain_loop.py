"""A distillation loop as the field writes it: the measure of step.py, frozen.

It follows what the loops of RepDistiller, SimKD and mdistiller have in common, and is not to be
made faster. Images are augmented one by one as PIL pictures in a DataLoader with 2 workers, where
CRD also draws its negatives with numpy; float32, contiguous; both networks return the list of all
their features, the teacher's under no_grad; hard labels and soft targets are computed whatever
their weight; loss, top-1 and top-5 are read with `.item()` in each step; SGD without Nesterov.
CRD gathers its K + 1 rows per image from either memory and multiplies them by `bmm`; what is of a
method is in plain_terms.py.

    python benchmarks/plain_loop.py METHOD FOLDER [--no-loading] [--device D]

is a candidate of step.py, see turns.py.
"""

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pair
import torch
from pair import BATCH, MEAN, NEGATIVES, OPTIMIZER, STD, TEMPERATURE, WEIGHTS, Data
from PIL import Image
from plain_terms import Memory, Projector
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from turns import paced

WORKERS = 2
READY = 8  # batches that are reused where loading is taken out


class Pictures(Dataset[tuple[Any, ...]]):
    """Image, label, index and, with `negatives`, 1 + K indices: its own and those of negatives."""

    def __init__(self, data: Data, negatives: int) -> None:
        self.data, self.negatives = data, negatives
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )
        classes = range(int(data.labels.max()) + 1) if negatives else ()
        self.others = [np.flatnonzero(data.labels != label) for label in classes]

    def __len__(self) -> int:
        return len(self.data.labels)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        image, target = Image.fromarray(self.data.pixels[index]), int(self.data.labels[index])
        image = self.transform(image)
        if not self.negatives:
            return image, target, index
        others = self.others[target]
        drawn = np.random.choice(others, self.negatives, replace=self.negatives > len(others))
        return image, target, index, np.hstack((np.asarray([index]), drawn))


def features(network: Any, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """Stem, three stages and pooled vector; logits."""
    stem = network.relu(network.bn1(network.conv1(images)))
    first = network.layer1(stem)
    second = network.layer2(first)
    third = network.layer3(second)
    pooled = network.avgpool(third).flatten(1)
    return [stem, first, second, third, pooled], network.fc(pooled)


def batches(data: Data, negatives: int, *, loading: bool) -> Iterator[list[Tensor]]:
    """Batches without end, epoch after epoch; without `loading` some ready ones again and again."""
    pictures = Pictures(data, negatives)
    loader = DataLoader(pictures, BATCH, shuffle=True, num_workers=WORKERS if loading else 0)
    if not loading:
        ready = [batch for batch, _ in zip(loader, range(READY), strict=False)]
        yield from itertools.cycle(ready)
    while True:
        yield from loader


def steps(
    method: str, data: Data, networks: tuple[Any, Any], *, loading: bool, device: str
) -> Iterator[None]:
    """Steps without end of kd, crd or simkd on a pair of student and teacher (CIFAR ResNets)."""
    torch.manual_seed(0)
    student, teacher = (network.to(device) for network in networks)
    widths = student.fc.in_features, teacher.fc.in_features
    negatives = NEGATIVES if method == "crd" else 0
    extra: nn.Module = nn.Identity()
    if method == "crd":
        extra = Memory(*widths, len(data.labels), negatives)
    if method == "simkd":
        extra = Projector(*widths)
    learning = nn.ModuleList([student, extra.to(device)]).train()
    optimizer = torch.optim.SGD(learning.parameters(), **OPTIMIZER)
    for batch in batches(data, negatives, loading=loading):
        on_device = [part.to(device) for part in batch]
        loss, logits = _loss(method, student, teacher, extra, on_device)
        hits = logits.topk(5, 1).indices.eq(on_device[1][:, None])
        loss.item(), hits[:, :1].float().sum().item(), hits.float().sum().item()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        yield


def _loss(
    method: str, student: nn.Module, teacher: Any, extra: nn.Module, batch: list[Tensor]
) -> tuple[Tensor, Tensor]:
    images, target, index = batch[:3]
    feat_s, logit_s = features(student, images)
    with torch.no_grad():
        feat_t, logit_t = features(teacher, images)
        feat_t = [f.detach() for f in feat_t]
    loss_own: Any = 0
    if method == "crd":
        loss_own = extra(feat_s[-1], feat_t[-1], index, batch[3])
    if method == "simkd":
        projected, logit_s = extra(feat_s[-2], teacher.fc)
        loss_own = F.mse_loss(projected, feat_t[-2])
    loss_cls = F.cross_entropy(logit_s, target)
    log_p, p = F.log_softmax(logit_s / TEMPERATURE, 1), F.softmax(logit_t / TEMPERATURE, 1)
    loss_div = F.kl_div(log_p, p, reduction="sum") * TEMPERATURE**2 / len(images)
    cls_weight, div_weight, own_weight = WEIGHTS[method]
    return cls_weight * loss_cls + div_weight * loss_div + own_weight * loss_own, logit_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("method", choices=WEIGHTS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--no-loading", action="store_true")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    data, networks = pair.read(options.folder), pair.networks(options.folder)
    loading = not options.no_loading
    run = steps(options.method, data, networks, loading=loading, device=options.device)
    for _ in paced(lambda: pair.settled(options.device)):
        next(run)


if __name__ == "__main__":
    main()
