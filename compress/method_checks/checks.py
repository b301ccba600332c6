"""What every method promises: each a function that raises `ContractError` where it does not hold.

A check takes `make`, which builds the same student, teachers and method anew: the same weights each
time, so that two of them can be compared.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from compress.distill import Distillation
from compress.method_checks import networks
from compress.methods.contract import Phase
from compress.taps import Tapped

Make = Callable[[], Distillation]
Check = Callable[[Make], None]
_NOT_OWN = ("ce", "soft", "auxiliary")  # terms that every method has, where they have a weight
# Tolerances of a step in its parts: of terms in float64, and of those that are cast to float32.
_EXACT = {"rtol": 1e-10, "atol": 1e-12}
_ROUNDED = {"rtol": 1e-5, "atol": 1e-6}


class ContractError(AssertionError):
    """A method does not keep a promise; the text says which and how."""


def terms_are_finite_scalars(make: Make) -> None:
    """Terms are named scalars, and finite."""
    module = make()
    terms = module(networks.first_batch(module))
    _require(bool(terms), "there is no term: nothing would be learned")
    for name, value in terms.items():
        _require(
            value.shape == (), f"'{name}' has shape {tuple(value.shape)}; expected a scalar ()"
        )
        number = float(value.detach())
        _require(math.isfinite(number), f"'{name}' is {number}; expected a finite number")


def gradient_reaches_what_learns_and_no_teacher(make: Make) -> None:
    """Every parameter that learns gets a gradient; teachers get none and stay as they are."""
    module = make()
    batch = networks.first_batch(module)
    module.begin_phase(None, batch)
    before = [copy.deepcopy(t.state_dict()) for t in _teachers(module)]
    module.train()
    torch.autograd.backward(_sum(module(batch)))
    learning = {name: p for name, p in module.named_parameters() if p.requires_grad}
    _require(bool(learning), "no parameter learns")
    late = {id(p) for p in module.method.late_parameters()}
    lacking = [n for n, p in learning.items() if p.grad is None and id(p) not in late]
    _require(not lacking, f"no gradient reaches {', '.join(lacking[:3])}")
    for network, state in zip(_teachers(module), before, strict=True):
        _require(not network.training, "a teacher is in training mode")
        reached = [n for n, p in network.named_parameters() if p.grad is not None]
        _require(not reached, f"a gradient reaches the teacher's {', '.join(reached[:3])}")
        after = network.state_dict()
        moved = [k for k in state if not torch.equal(after[k], state[k])]
        _require(not moved, f"a teacher's state moved: {', '.join(moved[:3])}")


def the_methods_own_terms_teach(make: Make) -> None:
    """Of the method's own terms, at least one has a gradient."""
    module = make()
    batch = networks.first_batch(module)
    module.begin_phase(None, batch)
    terms = {n: v for n, v in module.train()(batch).items() if n not in _NOT_OWN}
    taught = [name for name, value in terms.items() if value.requires_grad]
    _require(
        bool(taught) or not terms,
        f"no gradient comes from {', '.join(terms)}: is what it reads detached?",
    )


def no_teacher_is_in_the_state(make: Make) -> None:
    """A checkpoint holds the student and the method's own parts, no teacher."""
    module = make()
    parts = {key.split(".")[0] for key in module.state_dict()}
    _require(parts <= {"student", "method"}, f"the state has the parts {', '.join(sorted(parts))}")
    teachers = {id(p) for t in _teachers(module) for p in t.parameters()}
    held = [name for name, p in module.named_parameters() if id(p) in teachers]
    _require(not held, f"parameters of a teacher are the method's own: {', '.join(held[:3])}")


def a_checkpoint_gives_the_same_terms(make: Make) -> None:
    """What a method remembers is in its checkpoint, and it draws no numbers of its own."""
    module, other = make(), make()
    batches = networks.batches(module.method)
    module.train()
    for batch in batches.epoch(0):
        torch.autograd.backward(_sum(module(batch)))
        with torch.no_grad():
            for p in module.parameters():
                if p.grad is not None:
                    p.sub_(0.01 * p.grad)
        module.after_step()
    other.load_state_dict(module.state_dict())
    module.eval(), other.eval()
    batch = next(batches.epoch(1))
    for name, value in module(batch).items():
        _require(
            torch.equal(value, other(batch)[name]),
            f"'{name}' differs between two passes of one batch: what the method remembers is no "
            "buffer, or it draws from the global generators (see Method.draw)",
        )


def a_step_is_its_parts(make: Make) -> None:
    """A step is its contiguous parts weighted by their share, where images are not related."""
    module = make().double()
    if module.method.batch_coupled:
        return  # the parts of a coupled method have other relations; processes exchange their rows
    for teacher in _teachers(module):
        teacher.double()  # teachers are no submodules
    steps = (
        replace(batch, images=tuple(view.double() for view in batch.images))
        for batch in networks.batches(module.method).epoch(0)
    )
    module.train()(next(steps))
    module.after_step()  # what is set in the first step is set
    batch = next(steps)
    module.eval()  # batch norm is not what is looked at
    parts = [networks.part(batch, rows) for rows in (slice(0, 3), slice(3, 8))]
    terms_of_parts = [(part.share, module(part)) for part in parts]
    for name, value in module(batch).items():
        mean = torch.stack([share * terms[name] for share, terms in terms_of_parts]).sum()
        _require_close(
            mean,
            value,
            f"'{name}' of a step differs from that of two processes: a mean that is not over the "
            "images, numbers drawn for a part instead of the whole step (see Method.draw), or "
            "images that are related, which `batch_coupled = True` says",
            **(_EXACT if value.dtype == torch.float64 else _ROUNDED),
        )


def bfloat16_keeps_terms_in_float32(make: Make) -> None:
    """Under bfloat16 autocast, terms are finite and in float32."""
    module = make()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = module(networks.first_batch(module))
    for name, value in terms.items():
        _require(
            value.dtype == torch.float32,
            f"'{name}' is in {value.dtype}; expected torch.float32 (see compress.precision)",
        )
        _require(bool(torch.isfinite(value)), f"'{name}' is {float(value.detach())} in bfloat16")


def deploy_gives_the_logits_of_training(make: Make) -> None:
    """`deploy` gives the numbers of `logits`, to 1e-5."""
    module = make().eval()
    network = module.method.deploy(module.student).eval()
    images = _noise(module)
    with torch.no_grad():
        tapped = Tapped(module.student, module.method.context.student, module.student_taps)
        expected = module.method.logits(module.method.extend(tapped(images)))
        got = network(images)
    wanted = (3, networks.CLASSES)
    _require(
        tuple(got.shape[:2]) == wanted,
        f"`deploy` gives {tuple(got.shape)} of 3 images of {wanted[1]} classes",
    )
    _require_close(got, expected, "`deploy` and `logits` differ")


def what_ships_predicts_what_was_trained(make: Make) -> None:
    """`ship` gives the numbers of `deploy`, to 1e-5; the student where phases come after."""
    module = make().eval()
    shipped = module.method.ship(module.student).eval()
    if module.method.phases_after():  # which change it
        _require(
            shipped is module.student,
            "with phases after the main training, `ship` gives the student itself",
        )
        return
    images = _noise(module)
    with torch.no_grad():
        expected = module.method.deploy(module.student).eval()(images)
        _require_close(shipped(images), expected, "`ship` and `deploy` differ")


def a_batch_of_one_image(make: Make) -> None:
    """Terms of one image are finite, in eval mode."""
    module = make().eval()
    batch = next(networks.batches(module.method, batch_size=1, count=4).epoch(0))
    for name, value in module(batch).items():
        _require(bool(torch.isfinite(value)), f"'{name}' of one image is {float(value.detach())}")


def beginning_leaves_every_state(make: Make) -> None:
    """The look at the first batch, before the training, moves no state."""
    module = make()
    before = {k: v.clone() for k, v in module.state_dict().items()}
    module.begin_phase(None, networks.first_batch(module))
    moved = [k for k, v in module.state_dict().items() if not torch.equal(v, before[k])]
    _require(
        not moved,
        f"moved before the first step: {', '.join(moved[:3])}; state moves in `after_step` alone",
    )


def phases_train_what_they_name(make: Make) -> None:
    """Each phase trains the parameters it names and no other, and its terms fall."""
    module = make()
    batch = networks.first_batch(module)
    for phase in (*module.method.phases(), *module.method.phases_after()):
        module.begin_phase(phase, batch)
        learning = {n: p for n, p in module.named_parameters() if p.requires_grad}
        named = {id(p) for p in phase.parameters}
        _require(bool(learning), f"phase '{phase.name}' trains nothing")
        _require(
            {id(p) for p in learning.values()} <= named,
            f"phase '{phase.name}' trains parameters that it does not name",
        )
        reads_student = phase.student != "absent"
        _require(
            reads_student or not any(n.startswith("student.") for n in learning),
            f"phase '{phase.name}' trains the student, and says that it is absent",
        )
        _train_phase(module, phase, learning)


CHECKS: tuple[Check, ...] = (
    terms_are_finite_scalars,
    gradient_reaches_what_learns_and_no_teacher,
    the_methods_own_terms_teach,
    no_teacher_is_in_the_state,
    a_checkpoint_gives_the_same_terms,
    a_step_is_its_parts,
    bfloat16_keeps_terms_in_float32,
    deploy_gives_the_logits_of_training,
    what_ships_predicts_what_was_trained,
    a_batch_of_one_image,
    beginning_leaves_every_state,
    phases_train_what_they_name,
)


def _train_phase(
    module: Distillation, phase: Phase, learning: Mapping[str, torch.nn.Parameter]
) -> None:
    batch = networks.first_batch(module)
    fixed = {n: p.clone() for n, p in module.named_parameters() if n not in learning}
    if phase.student != "train":
        fixed |= {n: b.clone() for n, b in module.named_buffers() if n.startswith("student.")}
    optimizer = torch.optim.SGD([*learning.values()], lr=0.01)
    values = []
    for _ in range(20):
        total = _sum(module.train()(batch))
        optimizer.zero_grad()
        torch.autograd.backward(total)
        optimizer.step()
        values.append(float(total.detach()))
    _require(
        values[-1] < values[0],
        f"the terms of phase '{phase.name}' do not fall in 20 steps: {values[0]} to {values[-1]}",
    )
    state = module.state_dict()
    moved = [n for n, value in fixed.items() if not torch.equal(state[n], value)]
    _require(not moved, f"phase '{phase.name}' moved {', '.join(moved[:3])}")


def _teachers(module: Distillation) -> list[nn.Module]:
    """The teachers' networks, which are no submodules."""
    tapped = (teacher for teacher in module._teachers if isinstance(teacher, Tapped))
    return [teacher.network for teacher in tapped]


def _noise(module: Distillation) -> Tensor:
    return torch.randn(3, *(networks.DENSE_SHAPE if module.task.is_dense else networks.SHAPE))


def _sum(terms: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([*terms.values()]).sum()


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ContractError(message)


def _require_close(
    got: Tensor, expected: Tensor, message: str, rtol: float = 1e-5, atol: float = 1e-5
) -> None:
    try:
        torch.testing.assert_close(got, expected, rtol=rtol, atol=atol)
    except AssertionError as error:
        raise ContractError(f"{message}: {error}") from None
