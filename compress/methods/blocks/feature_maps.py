"""For methods on feature maps: pairs of maps, ways to bring them to one size, distances."""

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, mse_loss

from compress.methods.contract import MethodContext, only_teacher
from compress.precision import in_float32
from compress.taps import MapSpec

_CONTEXTS = (4, 2, 1)  # pixels of each side of the pooled maps


def pool_to_smaller(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool the larger of two maps (N, C, H, W) to the height and width of the smaller."""
    height = min(student.shape[-2], teacher.shape[-2])
    width = min(student.shape[-1], teacher.shape[-1])
    return _pool(student, height, width), _pool(teacher, height, width)


def _pool(maps: Tensor, height: int, width: int) -> Tensor:
    if maps.shape[-2:] == (height, width):
        return maps
    return adaptive_avg_pool2d(maps, (height, width))


@in_float32
def hierarchical_context_loss(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """The HCL of ReviewKD (Chen P. et al.; CVPR 2021): squared differences at several scales.

    The weighted mean of those of the maps themselves, of weight 1, and of both average-pooled to
    4x4, 2x2 and 1x1, each of half the weight before. Pooled maps that would not be smaller than the
    map's smaller side are left out, and the next takes their weight: a map of 4 pixels has 1,
    1/2 (2x2), 1/4 (1x1), that of one pixel 1 alone.

    Args:
        student_map: (N, C, H, W).
        teacher_map: of the same shape.

    Returns:
        A scalar >= 0 in float32 or wider, mean over every element; c^2 where all differ by c.
    """
    total, weight, weights = mse_loss(student_map, teacher_map), 1.0, 1.0
    for side in _CONTEXTS:
        if side < min(student_map.shape[-2:]):
            weight /= 2
            own, known = (adaptive_avg_pool2d(maps, side) for maps in (student_map, teacher_map))
            total = total + weight * mse_loss(own, known)
            weights += weight
    return total / weights


def stage_pairs(context: MethodContext, *, kind: str = "stages") -> list[tuple[MapSpec, MapSpec]]:
    """The maps that a method compares: each student stage beside the teacher's of the same number.

    Counted from the fine end, as the papers' code does; the deepest stages of the network that has
    more of them are left out (`unpaired_stages` says so).

    Args:
        kind: `stages` or `pre_activations`.

    Raises:
        ValueError: there are several teachers, or a network has no stage maps.
    """
    teacher = only_teacher(context).taps
    for who, specs in (("student", context.student), ("teacher", teacher)):
        if not specs.stages:
            raise ValueError(f"the method compares feature maps; the {who} has none")
    return list(zip(getattr(context.student, kind), getattr(teacher, kind), strict=False))


def unpaired_stages(context: MethodContext) -> list[str]:
    """A note on stages that find no partner, if there are any."""
    student, teacher = len(context.student.stages), len(context.teachers[0].taps.stages)
    if student == teacher:
        return []
    longer, count = ("student", student) if student > teacher else ("teacher", teacher)
    return [
        f"compares the first {min(student, teacher)} stages; the {longer} has {count}, "
        "its deepest are left out"
    ]


def unpaired_finest(context: MethodContext) -> list[str]:
    """A note for methods that pair stages from the deepest on, where the numbers of them differ."""
    student, teacher = len(context.student.stages), len(context.teachers[0].taps.stages)
    if student == teacher:
        return []
    fewest = min(student, teacher)
    return [f"compares the last {fewest} stages; the student has {student}, the teacher {teacher}"]


class MapRegressor(nn.Sequential):
    """Student map -> teacher map: a convolution that meets size and width, batch norm, ReLU.

    The convolution is that of the CRD repository: 3x3 with stride 2 where the student's map is
    twice as high and wide, transposed 4x4 with stride 2 where it is half as high and wide, 1x1
    where they are equal. For other sizes it is 3x3 and the larger map is then to be pooled
    (`pool_to_smaller`), which the SimKD repository does where the student's is smaller; where it
    is larger, both repositories have one valid convolution of 1 + H_s - H_t pixels, 1849 weights
    per channel pair for 56 against 14 pixels. Initial weights are PyTorch's.
    """

    def __init__(self, student: MapSpec, teacher: MapSpec, *, relu: bool = True) -> None:
        channels = student.channels, teacher.channels
        convolution: nn.Module
        own, target = (student.height, student.width), (teacher.height, teacher.width)
        if own == (2 * target[0], 2 * target[1]):
            convolution = nn.Conv2d(*channels, 3, stride=2, padding=1)
        elif (2 * own[0], 2 * own[1]) == target:
            convolution = nn.ConvTranspose2d(*channels, 4, stride=2, padding=1)
        elif own == target:
            convolution = nn.Conv2d(*channels, 1)
        else:
            convolution = nn.Conv2d(*channels, 3, padding=1)
        activation = [nn.ReLU()] if relu else []
        super().__init__(convolution, nn.BatchNorm2d(teacher.channels), *activation)
