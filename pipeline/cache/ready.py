"""Ready teachers: networks that their factory returns with their weights (`weights = "factory"`).

The identity of such a teacher is that of the tensors that it has (`module_state`). Its factory is called twice, with other
random numbers: a tensor that nobody loaded, such as a new head, then differs.
"""

import gc

from torch import nn

from ..experiment.document import TeacherMember
from ..models.build import build_model
from ..models.hugging_face import check_problem_type
from ..models.module_state import check_same_tensors, state_digest, tensor_digests
from ..trainer.trial import make_lazy_layers
from ..workspace import Workspace


def build_by_factory(work: Workspace, member: TeacherMember, seed: int) -> nn.Module:
    """Build the module of a teacher by its factory. seed: of the generators. Raises FactoryError."""
    rows = work.rows
    module = build_model(
        member.teacher,
        work.experiment,
        input_shape=work.shown_few.shape[1:],
        num_classes=rows.num_classes,
        seed=seed,
    )
    return make_lazy_layers(module, work.shown_few, rows.num_classes, f"teacher {member.name!r}")


def find_ready(work: Workspace, member: TeacherMember) -> str:
    """Return the digest of a ready teacher; the first call for a workspace makes the network.

    Raises FactoryError, or BadDataError for tensors that cannot be read.
    """
    if member.name not in work.ready:
        module = build_by_factory(work, member, member.seed + 1)
        work.ready[member.name] = tensor_digests(module, f"teacher {member.name!r}")
        del module
        gc.collect()  # before the second one takes as much memory
    return state_digest(work.ready[member.name])


def check_ready(work: Workspace, member: TeacherMember, module: nn.Module) -> str:
    """Compare a ready teacher with that of the other call of its factory, and return its digest.

    module: made with the teacher's own seed. Raises FactoryError if they differ, BadDataError for a model of Hugging Face
    whose outputs are no logits of one softmax.
    """
    where = f"teacher {member.name!r}"
    find_ready(work, member)
    digests = tensor_digests(module, where)
    check_same_tensors(work.ready[member.name], digests, member.teacher.factory)
    problem = getattr(getattr(module, "config", None), "problem_type", None)
    if isinstance(problem, str):
        check_problem_type(problem, where)
    return state_digest(digests)
