"""Peak bytes of forward and backward, against networks small enough to follow by hand."""

import torch
from torch import Tensor, nn

from compress.accounting import peak_step_bytes

# Rows and widths; one float32 number takes four bytes.
N, INPUTS, HIDDEN, OUTPUTS = 64, 3, 5, 2
FLOAT = 4


def _network() -> nn.Sequential:
    first, last = nn.Linear(INPUTS, HIDDEN, bias=False), nn.Linear(HIDDEN, OUTPUTS, bias=False)
    return nn.Sequential(first, nn.ReLU(), last)


def _peak(network: nn.Module, images: Tensor, *, backward: bool) -> int:
    def step() -> None:
        loss = network(images).sum()
        if backward:
            loss.backward()  # type: ignore[no-untyped-call]

    return peak_step_bytes(step, [images, *network.parameters()])


def test_two_layers_by_hand() -> None:
    images = torch.randn(N, INPUTS)
    # Forward: the hidden rows before and after the activation.
    assert _peak(_network(), images, backward=False) == FLOAT * 2 * N * HIDDEN
    # Backward of the activation: what it kept, the gradients behind it and before it; beside them
    # the last layer's gradient, the loss and the one that its backward starts from.
    by_hand = 3 * N * HIDDEN + HIDDEN * OUTPUTS + 2
    assert _peak(_network(), images, backward=True) == FLOAT * by_hand


def test_training_keeps_what_inference_lets_go() -> None:
    images = torch.randn(N, INPUTS)
    depth = 6
    chain = nn.Sequential(nn.Linear(INPUTS, INPUTS), *[nn.Sigmoid() for _ in range(depth)])
    row = FLOAT * N * INPUTS
    with torch.no_grad():
        assert _peak(chain, images, backward=False) == 2 * row
    # Every activation is kept; the first layer's output is not. The loss is a number more.
    assert _peak(chain, images, backward=False) == depth * row + FLOAT


def test_gradients_stay_alive_and_what_is_outside_is_not_counted() -> None:
    weight = nn.Parameter(torch.randn(1000))
    constant = torch.randn(1000)

    def step() -> None:
        (weight.view(-1) * constant.view(-1)).sum().backward()  # type: ignore[no-untyped-call]

    own = 1000 * FLOAT
    # The product has gone when the gradient comes; the loss and its own gradient are left.
    assert peak_step_bytes(step, [weight, constant]) == own + 2 * FLOAT
    # Now there is a gradient to add to, beside the new one.
    assert peak_step_bytes(step, [weight, constant]) == 2 * own + 2 * FLOAT


def test_what_a_function_of_its_own_makes_in_backward_is_seen() -> None:
    class Wide(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: object, gradient: Tensor) -> Tensor:  # type: ignore[override]
            return gradient.new_ones(100, len(gradient)).sum(0)

    x = torch.randn(8, requires_grad=True)

    def step() -> None:
        Wide.apply(x).sum().backward()

    # The wide tensor and its sum, the loss and its gradient.
    assert peak_step_bytes(step, [x]) == FLOAT * (100 * 8 + 8 + 2)


def test_watching_changes_no_number() -> None:
    images = torch.randn(N, INPUTS)
    network = _network()
    network(images).sum().backward()
    expected = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    network.zero_grad()
    _peak(network, images, backward=True)
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    assert len(gradients) == 2
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))
