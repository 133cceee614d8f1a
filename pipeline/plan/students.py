"""Hours of the students of a plan: a step of each network is timed, and set beside the time of its inputs."""

import statistics
import time
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ...storage.processors import processors
from ..experiment.document import Experiment
from ..experiment.tables import Student
from ..runtime.inference import device_of
from ..train.todo import StudentSeed
from ..trainer.trial import step_backward
from ..trials import first_runs, sees_views
from ..workspace import Workspace
from .inputs import Bound, InputTimes, network_threads, student_seconds, together

_TIMED: Final = 3
"""Steps that are timed, after one that warms up."""


@dataclass(frozen=True)
class StudentPlan:
    """Speed and hours of one student."""

    name: str
    """Name of its table."""
    rows_per_second: float
    """Measured speed of the network alone, forward and backward, in batches of its training."""
    input_seconds: float
    """Seconds of one thread to make an input; 0 where they are read from the store as they are."""
    workers: int
    """Processes that make them (`train.workers`); 0 for threads of the training."""
    hours: float
    """Hours of its training, all seeds together."""
    bound: Bound
    """The one of inputs, network and processors that takes so long."""


def passes_an_epoch(experiment: Experiment, student: Student) -> Fraction:
    """Return the rows that a student sees in an epoch, each view counted, as a multiple of the store's."""
    # Exact, as the file has it: 60 epochs of a tenth are six passes and not a little less.
    rows = Fraction(str(student.rows)) * (1 - Fraction(str(student.train.held_out or 0)))
    return rows * (experiment.cache.views if student.views == "all" else 1)


class StudentTimes:
    """Seconds a row of the network of each student, which `trials.try_ahead` calls it with."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        """By name of the student."""

    def __call__(self, run: StudentSeed, module: nn.Module, few: NDArray[Any]) -> None:
        """Time steps without the optimiser. few: one or two inputs, which are repeated to a batch. Raises as `step_backward`."""
        settings, device = run.student.train, device_of(module)
        batch = np.resize(few, (settings.batch_size, *few.shape[1:]))
        took = []
        for _ in range(1 + _TIMED):
            begun = time.perf_counter()
            given = torch.from_numpy(batch).to(device).clone()
            step_backward(module, given, settings.precision, f"training student {run.name}")
            _wait_for(device)
            module.zero_grad(set_to_none=True)
            took.append(time.perf_counter() - begun)
        self.seconds[run.student.name] = statistics.median(took[1:]) / len(batch)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def plan_students(work: Workspace, times: InputTimes, measured: StudentTimes) -> tuple[StudentPlan, ...]:
    """Return the hours of each student. measured: the time of its network."""
    experiment, plans = work.experiment, list[StudentPlan]()
    threads = network_threads(work.choose_device())
    for run in first_runs(work):
        student, seconds = run.student, measured.seconds[run.student.name]
        inputs = student_seconds(work, times, student.views, augments=sees_views(work, student))
        shown = float(passes_an_epoch(experiment, student)) * len(work.rows)
        shown *= student.train.epochs * len(student.train.seeds)
        both = together(inputs, seconds, student.train.workers, threads, processors())
        hours = shown * both.seconds / 3600
        plans.append(StudentPlan(student.name, 1 / seconds, inputs, student.train.workers, hours, both.bound))
    return tuple(plans)
