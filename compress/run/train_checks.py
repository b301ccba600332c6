"""Problems of a training of a recipe or a transfer command, beyond its shape."""

from compress.engine.optimization import OPTIMIZERS, SCHEDULES, TrainSettings
from compress.errors import nearest
from compress.recipe.schema import Train
from compress.recipe.signatures import check_named
from compress.stages import settings_from

_LARGEST_LR = 1e6


def check_train(train: Train, path: str) -> list[str]:
    """Problems of any `train` section."""
    problems = check_named(train.schedule, SCHEDULES, f"{path}.schedule")
    if train.accumulate > max(1, train.batch_size // 2):
        problems.append(
            f"{path}.accumulate: a part of a batch has two images or more (batch norm); of "
            f"{train.batch_size} that is at most {max(1, train.batch_size // 2)}, got "
            f"{train.accumulate}"
        )
    if train.optimizer.arguments:
        names = ", ".join(train.optimizer.arguments)
        problems.append(
            f"{path}.optimizer: takes no arguments ({names}); momentum, nesterov and weight_decay "
            "stand beside it"
        )
    if train.optimizer.name not in OPTIMIZERS:
        known = ", ".join(OPTIMIZERS)
        hint = nearest(train.optimizer.name, OPTIMIZERS)
        problems.append(
            f"{path}.optimizer: unknown optimiser '{train.optimizer.name}'; known: {known}{hint}"
        )
    if not problems:
        try:
            _check_schedule(settings_from(train))
        except (ValueError, ArithmeticError, TypeError) as error:
            problems.append(f"{path}.schedule: {error}")
    return problems


def _check_schedule(settings: TrainSettings) -> None:
    """Look at the learning rate over the whole run: an absurd argument shows late in it."""
    for percent in range(100):
        lr = settings.lr * settings.schedule(percent / 100)
        if not abs(lr) < _LARGEST_LR:
            raise ValueError(f"after {percent} % of the run, the learning rate is {lr:g}")


def check_transfer_train(train: Train, path: str) -> list[str]:
    """Problems of a transfer task's `train` section."""
    problems = check_train(train, path)
    if train.accumulate > 1:
        problems.append(f"{path}.accumulate: transfer tasks take their batches whole")
    return problems
