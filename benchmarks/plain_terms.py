"""CRD's and SimKD's terms as plain_loop.py has them: as the field writes them, frozen."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Memory(nn.Module):
    """CRD's two memories, scored by rows that are gathered for each image."""

    memory_s: Tensor
    memory_t: Tensor
    params: Tensor

    def __init__(self, width_s: int, width_t: int, rows: int, negatives: int) -> None:
        super().__init__()
        self.rows, self.negatives = rows, negatives
        self.embed_s, self.embed_t = nn.Linear(width_s, 128), nn.Linear(width_t, 128)
        limit = 1 / math.sqrt(128 / 3)
        for name in ("memory_s", "memory_t"):
            self.register_buffer(name, torch.rand(rows, 128).mul_(2 * limit).add_(-limit))
        # K, temperature, Z of either side (below 0: not set yet), momentum
        self.register_buffer("params", torch.tensor([negatives, 0.07, -1, -1, 0.5]))

    def forward(self, f_s: Tensor, f_t: Tensor, index: Tensor, drawn: Tensor) -> Tensor:
        v_s, v_t = self._length_1(self.embed_s(f_s)), self._length_1(self.embed_t(f_t))
        out_t = self._scores(self.memory_s, v_t, drawn)
        out_s = self._scores(self.memory_t, v_s, drawn)
        for side, out in ((2, out_s), (3, out_t)):
            if self.params[side].item() < 0:
                self.params[side] = out.mean() * self.rows
        out_s = torch.div(out_s, self.params[2].item()).contiguous()
        out_t = torch.div(out_t, self.params[3].item()).contiguous()
        with torch.no_grad():
            for memory, v in ((self.memory_s, v_s), (self.memory_t, v_t)):
                self._write(memory, v, index)
        return self._side(out_s) + self._side(out_t)

    def _length_1(self, v: Tensor) -> Tensor:
        return v.div(v.pow(2).sum(1, keepdim=True).pow(0.5))

    def _scores(self, memory: Tensor, v: Tensor, drawn: Tensor) -> Tensor:
        rows = torch.index_select(memory, 0, drawn.view(-1)).detach()
        rows = rows.view(len(v), int(self.params[0].item()) + 1, 128)
        return torch.exp(torch.div(torch.bmm(rows, v.view(len(v), 128, 1)), self.params[1].item()))

    def _write(self, memory: Tensor, v: Tensor, index: Tensor) -> None:
        momentum = self.params[4].item()
        row = torch.index_select(memory, 0, index.view(-1))
        row.mul_(momentum).add_(torch.mul(v, 1 - momentum))
        memory.index_copy_(0, index, self._length_1(row))

    def _side(self, out: Tensor) -> Tensor:
        noise = self.negatives / self.rows
        positive, negative = out.select(1, 0), out.narrow(1, 1, self.negatives)
        log_1 = torch.div(positive, positive.add(noise + 1e-7)).log_()
        log_0 = torch.div(negative.clone().fill_(noise), negative.add(noise + 1e-7)).log_()
        return -(log_1.sum(0) + log_0.view(-1, 1).sum(0)) / len(out)


class Projector(nn.Module):
    """SimKD's: the student's last map in the teacher's width, and the teacher's logits of it."""

    def __init__(self, width_s: int, width_t: int) -> None:
        super().__init__()
        half = width_t // 2
        layers: list[nn.Module] = []
        for c_in, c_out, size in ((width_s, half, 1), (half, half, 3), (half, width_t, 1)):
            layers.append(nn.Conv2d(c_in, c_out, size, padding=size // 2, bias=False))
            layers += [nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]
        self.transfer = nn.Sequential(*layers)

    def forward(self, map_s: Tensor, classifier: nn.Module) -> tuple[Tensor, Tensor]:
        projected = self.transfer(map_s)
        return projected, classifier(F.adaptive_avg_pool2d(projected, (1, 1)).flatten(1))
