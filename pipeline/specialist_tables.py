"""What does an experiment file say of specialists, and of how they are put together again?

`[specialists]` says of which sets of a clustering specialists are trained, and how; `[combine]` says that they and their
generalist become one more capture. As in all tables, a key that would have no effect beside the others is an error.
"""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from ..storage.batches import rows_by_share
from ..storage.errors import ConfigError
from .schema import (
    NAME,
    Count,
    Name,
    Positive,
    Seed,
    Table,
    Whole,
    check_distinct,
    problem,
    show,
)
from .training_tables import Train


def _check_sets(value: object) -> object:
    """ "all", or the numbers of some sets."""
    if value == "all":
        return value
    numbers = (
        [n for n in value if isinstance(n, int) and not isinstance(n, bool) and n >= 0]
        if isinstance(value, list | tuple)
        else []
    )
    if not numbers or not isinstance(value, list | tuple) or len(numbers) != len(value):
        raise problem(
            "'all', or a list of numbers of sets, from 0", show(value), "write sets = 'all', or name some"
        )
    return check_distinct(tuple(numbers))


def _check_views(value: object) -> object:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if not whole and value not in ("all", "cycle"):
        raise problem("'all', 'cycle' or the number of a view, from 0", show(value), "write one of these")
    return value


class SpecialistTrain(Train):
    """`[specialists] train`: how each specialist is trained, from the weights of the generalist on."""

    checkpoint_every: Count | None = None
    """Steps between two checkpoints, from which an interrupted training goes on; None for none."""

    @classmethod
    def unknown_key(cls, key: str, known: list[str]) -> PydanticCustomError:
        if key == "seeds":
            return problem(
                "no 'seeds' for specialists",
                "them",
                "use specialists.seed, which counts up from set to set",
                key,
            )
        return super().unknown_key(key, known)

    @model_validator(mode="after")
    def _probabilities_stay_honest(self) -> "SpecialistTrain":
        if self.label_smoothing:
            raise problem(
                "no label_smoothing for specialists, whose correction for the shares of a batch rests on posteriors",
                show(self.label_smoothing),
                "drop it",
                "label_smoothing",
            )
        return self


class Specialists(Table):
    """`[specialists]`: one network for each confusable set of classes, begun from the generalist's weights."""

    generalist: Name | None = None
    """The teacher whose weights they begin with; one member where it has several. `cluster.teacher` by default."""
    clustering: Name | None = None
    """The clustering in the store that has the sets; that of `[cluster]` by default."""
    sets: Annotated[Literal["all"] | tuple[Whole, ...], BeforeValidator(_check_sets)] = "all"
    """Of which of its sets there are specialists."""
    name: Name | None = None
    """What they are called, followed by the number of the set; the name of the clustering by default."""
    variant: Literal["joint", "dustbin", "full"] = "joint"
    """All of the generalist's outputs, those of other classes as one dustbin; a new head with a dustbin of its own; or a
    softmax over all classes, held by the generalist's soft targets."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of special rows in every batch."""
    temperature: Positive = 1.0
    """Of `full`: of the generalist's soft targets and of the specialist beside them, in training."""
    head: Annotated[str, Field(min_length=1)] | None = None
    """Of `dustbin`: the module that is replaced; the last linear layer of as many outputs as classes by default."""
    views: Annotated[Literal["all", "cycle"] | int, BeforeValidator(_check_views)] = "cycle"
    """Views of the rows that they learn from: all every epoch, another one each epoch, or this one."""
    seed: Seed = 0
    """Seed of the specialist of set 0; the others count up by the number of their set."""
    workers: Count = 1
    """Processes in which they are trained, each one by itself."""
    capture: bool = True
    """Whether they are run over the transfer set, and their logits kept."""
    train: SpecialistTrain
    """How each is trained. An epoch goes once through the special rows, and through as many others as `share` says."""

    @model_validator(mode="after")
    def _batches_hold_both(self) -> "Specialists":
        try:
            rows_by_share(self.train.batch_size, [self.share, 1 - self.share])
        except ConfigError:
            raise problem(
                "special rows and others in every batch",
                f"{self.train.batch_size}, with share = {self.share:g}",
                "raise it, or change share",
                "train.batch_size",
            ) from None
        return self

    @model_validator(mode="after")
    def _keys_have_effect(self) -> "Specialists":
        for key, has_effect in {"temperature": "full", "head": "dustbin"}.items():
            if key in self.model_fields_set and self.variant != has_effect:
                found, remedy = show(getattr(self, key)), f"drop it, or set variant = '{has_effect}'"
                raise problem(f"no {key} with variant = '{self.variant}'", found, remedy, key)
        return self


class Combine(Table):
    """`[combine]`: generalist and specialists as one capture (the paper's equation 5)."""

    name: Name = "combined"
    """Its name in the store; students may have it among their teachers."""
    top: Count = 1
    """Specialists of a row are those of its so many most likely classes, by the generalist."""
    direction: Literal["pq", "qp"] = "pq"
    """Whether KL(p, q) or KL(q, p) is minimised, p what each says and q what comes of it."""


def check_specialist_names(prefix: str, sets: int) -> None:
    """Refuse names that a store cannot have. Raises PydanticCustomError."""
    longest = f"{prefix}-{max(0, sets - 1)}"
    if not NAME.fullmatch(longest):
        raise problem("names of 64 characters at most", show(longest), "set name", "specialists.name")
