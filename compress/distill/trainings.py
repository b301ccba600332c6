"""The trainings of one student: phases before the main training, that itself, phases after it."""

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.data.batch import BatchSource
from compress.distill.module import Distillation
from compress.engine.checkpoint import PHASE_PREFIX, Selection
from compress.engine.loop import History, Position, Training
from compress.engine.optimization import TrainSettings, constant
from compress.methods import find_method
from compress.methods.contract import Method, MethodContext, Phase
from compress.models.forward import lay_channels_last
from compress.seeding import seeded

# Networks by the ending of their metrics' names ("" for the one that ships) -> those metrics.
EvaluateAll = Callable[[Mapping[str, nn.Module]], dict[str, float]]


def build_method(
    name: str,
    arguments: Mapping[str, Any],
    context: MethodContext,
    student: nn.Module,
    input_shape: tuple[int, int, int],
    *,
    seed: int,
) -> Method:
    """The method of a name, drawn by `seed`, for a student of `context`.

    The student is laid channels last in memory, where it runs so, and the method with it.

    Raises:
        ValueError: the method refuses these networks or arguments.
    """
    with seeded(seed, "method", name):
        method = find_method(name)(context, **arguments)
        method.seed = int(torch.randint(2**62, ()))
    if lay_channels_last(student, input_shape):
        method.to(memory_format=torch.channels_last)
    return method


@dataclass(frozen=True, kw_only=True)
class Trainings:
    """What the trainings of one student have in common.

    module: of student, teachers and method. batches: those of phases; main_batches: those of the
    main training. settings: of the main training, which phases change as they say. directory: gets
    the state of the main training, and a folder for each phase. role, seed, device, fingerprint and
    keep_best: see `Training`. begin: prepares `module` for a phase, or with None for the main
    training. evaluate: called after each epoch, see `EvaluateAll`. before_main, after_main: called
    around the main training.
    """

    module: Distillation
    batches: BatchSource
    main_batches: BatchSource
    settings: TrainSettings
    directory: Path
    role: str
    seed: int
    device: torch.device
    fingerprint: str
    begin: Callable[[Phase | None], None]
    evaluate: EvaluateAll | None = None
    keep_best: Selection | None = None
    before_main: Callable[[], None] = lambda: None
    after_main: Callable[[], None] = lambda: None

    def run(self) -> Generator[Position, None, list[History]]:
        """The histories of the main training and of judged phases after it.

        Stops before each step, so that trainings can take turns; `drain` runs it alone.
        """
        method = self.module.method
        phases, after = method.phases(), method.phases_after()
        for number, phase in enumerate(phases):
            training = self._phase(phase, method.deploy)
            yield from training.run_in_turns(number - len(phases))
        self.begin(None)
        self.before_main()
        histories = [(yield from self._main().run_in_turns())]
        self.after_main()
        for number, phase in enumerate(after):
            history = yield from self._phase(phase, method.ship).run_in_turns(number + 1)
            histories += [history] if phase.judged else []
        return histories

    def _phase(self, phase: Phase, judged: Callable[[nn.Module], nn.Module]) -> Training:
        """A training before or after the main one.

        `judged`: of the student, the network that is evaluated where the phase is judged.
        """
        self.begin(phase)
        settings = replace(
            self.settings,
            epochs=phase.epochs,
            lr=phase.lr or self.settings.lr,
            schedule=_schedule(phase, self.settings),
        )
        networks = {"": judged(self.module.student)} if phase.judged else {}
        return self._training(
            self.batches,
            settings,
            self.directory / phase_folder(phase),
            f"{self.role} {phase.name}",
            networks,
        )

    def _main(self) -> Training:
        method, student = self.module.method, self.module.student
        networks = {"": method.deploy(student)}
        networks |= {f"/{name}": one for name, one in method.judged_beside(student).items()}
        return self._training(self.main_batches, self.settings, self.directory, self.role, networks)

    def _training(
        self,
        batches: BatchSource,
        settings: TrainSettings,
        directory: Path,
        role: str,
        networks: Mapping[str, nn.Module],
    ) -> Training:
        """A training after each of whose epochs these networks are evaluated, if there are any."""
        evaluate = self.evaluate if networks else None
        return Training(
            self.module,
            batches,
            settings,
            directory=directory,
            role=role,
            seed=self.seed,
            device=self.device,
            evaluate=None if evaluate is None else lambda: evaluate(networks),
            keep_best=self.keep_best if networks else None,
            fingerprint=self.fingerprint,
        )


def phase_folder(phase: Phase) -> str:
    """The folder of a phase's training, in that of the main one."""
    return f"{PHASE_PREFIX}{phase.name}"


def _schedule(phase: Phase, settings: TrainSettings) -> Callable[[float], float]:
    if callable(phase.schedule):
        return phase.schedule
    return {"constant": constant(), "recipe": settings.schedule}[phase.schedule]
