"""Student, frozen teachers and a method as one trainable module.

>>> import torch
>>> from compress.data import Batch
>>> from compress.distill import Distillation
>>> from compress.methods import METHODS, LossWeights, MethodContext, teacher_context
>>> from compress.models import build
>>> from compress.taps import discover
>>> from compress.tasks import Classification
>>> student, teacher = build("resnet8", num_classes=4), build("resnet14", num_classes=4)
>>> labels, shape = torch.tensor([0, 1, 2, 3]), (3, 8, 8)
>>> context = MethodContext(
...     discover(student, shape, "student"),
...     (teacher_context(teacher, discover(teacher, shape, "teacher")),),
...     num_classes=4, train_size=4, labels=labels, batch_size=4, steps_per_epoch=1, epochs=1,
... )
>>> module = Distillation(
...     student, [teacher], METHODS["sp"](context), LossWeights(ce=1, kd=0.9, method=3000),
...     Classification(), kd_temperature=4,
... )
>>> images, index = torch.rand(4, *shape), torch.arange(4)
>>> terms = module(Batch((images,), (index,), labels, index, epoch=0, step=0))
>>> sorted(terms), any(name.startswith("teacher") for name in module.state_dict())
(['ce', 'soft', 'sp'], False)

`compress.engine.train` trains such a module, see the example of `compress`.
"""

from compress.distill.gathering import gather_rows
from compress.distill.module import Distillation

__all__ = ["Distillation", "gather_rows"]
