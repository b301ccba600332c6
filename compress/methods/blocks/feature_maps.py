"""For methods on feature maps: pairs of maps, and ways to bring them to one size."""

from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from compress.methods.contract import MethodContext, only_teacher
from compress.taps import MapSpec


def pool_to_smaller(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Average-pool the larger of two maps (N, C, H, W) to the height and width of the smaller."""
    height = min(student.shape[-2], teacher.shape[-2])
    width = min(student.shape[-1], teacher.shape[-1])
    return _pool(student, height, width), _pool(teacher, height, width)


def _pool(maps: Tensor, height: int, width: int) -> Tensor:
    if maps.shape[-2:] == (height, width):
        return maps
    return adaptive_avg_pool2d(maps, (height, width))


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
