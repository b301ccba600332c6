"""ReviewKD against float64 loops over the formula, what reviews what, its pairs of networks."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from compress.data import Batch
from compress.methods import METHODS, MethodContext, TeacherContext, reviewkd_loss
from compress.methods.blocks.feature_maps import hierarchical_context_loss
from compress.methods.reviewkd import Fusion, ReviewKD
from compress.models import build
from compress.taps import MapSpec, Taps, TapSpecs, discover
from tests.methods import building

IMAGES = 3


def test_the_loss_is_the_sum_over_levels() -> None:
    sizes = ((4, 8, 6), (5, 3, 3), (7, 1, 1))
    fused, known = ([torch.randn(2, *size).double() for size in sizes] for _ in range(2))
    expected = sum(
        float(hierarchical_context_loss(a, b)) for a, b in zip(fused, known, strict=True)
    )
    got = reviewkd_loss(fused, known)
    assert got.dtype == torch.float64
    assert float(got) == pytest.approx(expected, rel=1e-12)
    assert float(reviewkd_loss(known, known)) == 0


def _norm(value: float, layer: nn.Module, channel: int) -> float:
    """Batch norm of one value in eval mode."""
    assert isinstance(layer, nn.BatchNorm2d)
    assert layer.running_mean is not None and layer.running_var is not None
    mean, variance = float(layer.running_mean[channel]), float(layer.running_var[channel])
    scaled = (value - mean) / math.sqrt(variance + layer.eps)
    return scaled * float(layer.weight[channel]) + float(layer.bias[channel])


def _nearest(maps: Tensor, size: tuple[int, int]) -> Tensor:
    height, width = maps.shape[-2:]
    rows = [y * height // size[0] for y in range(size[0])]
    return torch.stack(
        [maps[:, :, y, [x * width // size[1] for x in range(size[1])]] for y in rows], 2
    )


def _convolved(maps: Tensor, part: nn.Module) -> Tensor:
    """Convolution of odd width with zeros around, then batch norm."""
    assert isinstance(part, nn.Sequential)
    weight = part[0].weight
    assert isinstance(weight, Tensor)
    around = weight.shape[-1] // 2
    images, _, height, width = maps.shape
    result = torch.zeros(images, len(weight), height, width, dtype=torch.float64)
    for n in range(images):
        for c in range(len(weight)):
            for y in range(height):
                for x in range(width):
                    total = 0.0
                    for i in range(weight.shape[-2]):
                        for j in range(weight.shape[-1]):
                            row, column = y + i - around, x + j - around
                            if 0 <= row < height and 0 <= column < width:
                                total += float(weight[c, :, i, j] @ maps[n, :, row, column])
                    result[n, c, y, x] = _norm(total, part[1], c)
    return result


def _oracle(
    fusion: Fusion, maps: Tensor, residual: Tensor | None, size: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    own = _convolved(maps, fusion.narrow)
    images, _, height, width = own.shape
    if residual is not None:
        assert isinstance(fusion.attention, nn.Conv2d) and fusion.attention.bias is not None
        deeper = _nearest(residual, (height, width))
        mixed = torch.zeros_like(own)
        for n in range(images):
            for y in range(height):
                for x in range(width):
                    read = torch.cat([own[n, :, y, x], deeper[n, :, y, x]])
                    shares = [
                        1 / (1 + math.exp(-float(row.flatten() @ read + bias)))
                        for row, bias in zip(
                            fusion.attention.weight, fusion.attention.bias, strict=True
                        )
                    ]
                    mixed[n, :, y, x] = shares[0] * own[n, :, y, x] + shares[1] * deeper[n, :, y, x]
        own = mixed
    own = _nearest(own, size)
    return _convolved(own, fusion.widen), own


def _settled(fusion: Fusion) -> Fusion:
    """In float64 and eval mode, with batch norms that have seen something."""
    for module in fusion.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return fusion.double().eval()


@pytest.mark.parametrize(
    ("own", "deeper", "size"),
    [
        ((4, 6), None, (4, 6)),
        ((4, 6), (2, 3), (4, 6)),
        ((3, 5), (1, 1), (6, 7)),  # enlarged by uneven factors
        ((4, 4), (8, 8), (2, 3)),  # a residual that is larger, a teacher that is smaller
    ],
)
@torch.no_grad()
def test_a_fusion_equals_the_formula(
    own: tuple[int, int], deeper: tuple[int, int] | None, size: tuple[int, int]
) -> None:
    fusion = _settled(Fusion(3, 2, 4, is_last=deeper is None))
    maps = torch.randn(2, 3, *own, dtype=torch.float64)
    residual = None if deeper is None else torch.randn(2, 2, *deeper, dtype=torch.float64)
    got, expected = fusion(maps, residual, size), _oracle(fusion, maps, residual, size)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


def _map(place: str, channels: int, height: int, width: int) -> MapSpec:
    return MapSpec(place, channels, height, width, 1)


def _specs(sizes: Sequence[tuple[int, int, int]], pooled_width: int | None) -> TapSpecs:
    maps = tuple(_map(f"layer{i}", *size) for i, size in enumerate(sizes))
    return TapSpecs(maps, maps, maps[-1] if maps else None, pooled_width, "fc", 5)


def _context(student: TapSpecs, teacher: TapSpecs) -> MethodContext:
    return MethodContext(
        student=student,
        teachers=(TeacherContext(teacher, None, None),),
        num_classes=5,
        train_size=24,
        labels=torch.arange(24) % 5,
        batch_size=IMAGES,
        steps_per_epoch=8,
        epochs=2,
    )


def _taps(specs: TapSpecs, kind: str, *, learns: bool = False) -> Taps:
    maps = [torch.randn(IMAGES, *m.shape).double() for m in specs.stages]
    vector = torch.randn(IMAGES, specs.pooled_width or 0).double()
    for drawn in (*maps, vector):
        drawn.requires_grad_(learns)
    return Taps({kind: maps, "pooled": vector})


def _batch(epoch: int = 100) -> Batch:
    index = torch.arange(IMAGES)
    return Batch((torch.zeros(IMAGES, 3, 4, 4),), (index,), index, index, epoch=epoch, step=0)


UNEVEN = (
    _specs([(3, 9, 7), (4, 5, 4), (6, 5, 4)], 8),
    _specs([(5, 12, 8), (5, 6, 4), (7, 2, 3)], 9),
)


@torch.no_grad()
def test_levels_are_fused_from_the_pooled_vector_to_the_finest() -> None:
    method = ReviewKD(_context(*UNEVEN), middle_channels=2).eval()
    for fusion in method.fusions:
        assert isinstance(fusion, Fusion)
        _settled(fusion)
    student, teacher = _taps(UNEVEN[0], "stages"), _taps(UNEVEN[1], "pre_activations")
    total = 0.0
    residual: Tensor | None = None
    vector, known = (taps.tensor("pooled")[:, :, None, None] for taps in (student, teacher))
    own = [*student.tensors("stages"), vector]
    targets = [*teacher.tensors("pre_activations"), known]
    for level in (3, 2, 1, 0):
        fusion, target = method.fusions[level], targets[level]
        assert isinstance(fusion, Fusion)
        size = (target.shape[-2], target.shape[-1])
        out, residual = _oracle(fusion, own[level], residual, size)
        total += float(hierarchical_context_loss(out, target))
    got = method([student], [[teacher]], _batch())["reviewkd"]
    assert float(got) == pytest.approx(total, rel=1e-10)


def test_a_level_is_reviewed_with_all_that_are_deeper_and_no_other() -> None:
    method = ReviewKD(_context(*UNEVEN)).double()
    student = _taps(UNEVEN[0], "stages", learns=True)
    own = [*student.tensors("stages"), student.tensor("pooled")]
    levels = method._levels(student.tensors("stages"), student.tensor("pooled"))
    known = [torch.zeros(IMAGES, *m.shape) for m in UNEVEN[1].stages]
    fused = method.fuse(levels, [*known, torch.zeros(IMAGES, 9, 1, 1)])
    for level, out in enumerate(fused):
        gradients = torch.autograd.grad(
            out.square().sum() + out.sum(), own, retain_graph=True, allow_unused=True
        )
        assert [g is not None for g in gradients] == [i >= level for i in range(4)]


def _widths(method: ReviewKD) -> list[tuple[int, int, int]]:
    found = []
    for fusion in method.fusions:
        assert isinstance(fusion, Fusion)
        first, last = fusion.narrow[0], fusion.widen[0]
        assert isinstance(first, nn.Conv2d) and isinstance(last, nn.Conv2d)
        found.append((first.in_channels, first.out_channels, last.out_channels))
    return found


@pytest.mark.parametrize(
    ("teacher", "student", "widths", "out", "sizes"),
    [
        ("resnet32x4", "resnet8x4", (64, 128, 256, 256), (64, 128, 256, 256), (32, 16, 8, 1)),
        ("wrn_40_2", "wrn_40_1", (16, 32, 64, 64), (32, 64, 128, 128), (32, 16, 8, 1)),
        ("resnet32x4", "shufflenetv2", (116, 232, 464, 1024), (64, 128, 256, 256), (32, 16, 8, 1)),
        ("wrn_40_2", "shufflenetv1", (240, 480, 960, 960), (32, 64, 128, 128), (32, 16, 8, 1)),
        (
            "resnet50_cifar",
            "vgg8",
            (128, 256, 512, 512, 512),
            (256, 512, 1024, 2048, 2048),
            (32, 16, 8, 4, 1),
        ),
        (
            "vgg13",
            "mobilenetv2",
            (12, 16, 48, 160, 1280),
            (128, 256, 512, 512, 512),
            (16, 8, 4, 4, 1),
        ),
    ],
)
def test_shapes_read_off_the_networks_are_those_of_the_authors_tables(
    teacher: str,
    student: str,
    widths: tuple[int, ...],
    out: tuple[int, ...],
    sizes: tuple[int, ...],
) -> None:
    own, known = (
        discover(build(name, num_classes=5), (3, 32, 32), name) for name in (student, teacher)
    )
    with torch.device("meta"):
        method = ReviewKD(_context(own, known))
    middle = min(512, widths[-1])
    assert _widths(method) == [(w, middle, o) for w, o in zip(widths, out, strict=True)]
    assert (*(m.height for m in known.pre_activations), 1) == sizes
    assert method.notes() == []


def test_the_deepest_stages_are_paired_and_what_is_left_out_is_noted() -> None:
    fewer, more = _specs([(3, 8, 8), (4, 4, 4)], 6), _specs([(5, 8, 8), (7, 4, 4), (9, 2, 2)], 8)
    for own, known, widths in (
        (fewer, more, [(3, 6, 7), (4, 6, 9), (6, 6, 8)]),
        (more, fewer, [(7, 8, 3), (9, 8, 4), (8, 8, 6)]),
    ):
        method = ReviewKD(_context(own, known)).double()
        assert _widths(method) == widths
        counts = len(own.stages), len(known.stages)
        assert method.notes() == [
            f"compares the last 2 stages; the student has {counts[0]}, the teacher {counts[1]}"
        ]
        taps = _taps(own, "stages"), _taps(known, "pre_activations")
        assert torch.isfinite(method([taps[0]], [[taps[1]]], _batch())["reviewkd"])


def test_middle_channels_bound_the_fusions_width() -> None:
    method = ReviewKD(_context(*UNEVEN), middle_channels=2)
    assert {middle for _, middle, _ in _widths(method)} == {2}


def test_the_term_warms_up() -> None:
    module = building.distillation(ReviewKD)
    method, batch = module.method.eval(), building.first_batch(module)
    with torch.no_grad():
        student, teacher = module._tapped(batch.images[0]), module._teachers[0](batch.images[0])
        values = [
            float(method([student], [[teacher]], replace(batch, epoch=epoch))["reviewkd"])
            for epoch in (0, 9, 19, 50)
        ]
    factors = [value / values[-1] for value in values]
    assert factors == pytest.approx([1 / 20, 1 / 2, 1, 1], rel=1e-5)


def test_maps_without_contrast_have_bounded_gradients() -> None:
    method = ReviewKD(_context(*UNEVEN)).double()
    student, teacher = _taps(UNEVEN[0], "stages", learns=True), _taps(UNEVEN[1], "pre_activations")
    zeros = student.map(lambda t: torch.zeros_like(t, requires_grad=True))
    method([zeros], [[teacher]], _batch())["reviewkd"].backward()  # type: ignore[no-untyped-call]
    learned = [*zeros.tensors("stages"), zeros.tensor("pooled"), *method.parameters()]
    for one in learned:
        assert one.grad is not None and torch.isfinite(one.grad).all()


def test_published_weight() -> None:
    assert METHODS["reviewkd"] is ReviewKD
    assert {terms.method for terms in ReviewKD.protocols.values()} == {5}


def test_impossible_arguments_and_networks_are_refused_in_words() -> None:
    context = _context(*UNEVEN)
    with pytest.raises(ValueError, match="middle_channels is at least 1, got 0"):
        ReviewKD(context, middle_channels=0)
    with pytest.raises(ValueError, match="warm_up_epochs is at least 0, got -1"):
        ReviewKD(context, warm_up_epochs=-1)
    with pytest.raises(ValueError, match="compares feature maps; the student has none"):
        ReviewKD(_context(_specs([], 8), UNEVEN[1]))
    with pytest.raises(ValueError, match="what a linear classifier reads; the teacher has none"):
        ReviewKD(_context(UNEVEN[0], replace(UNEVEN[1], pooled_width=None)))
    with pytest.raises(ValueError, match="the method reads one teacher, got 2"):
        ReviewKD(replace(context, teachers=context.teachers * 2))
