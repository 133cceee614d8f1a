"""What does an experiment file say of how a network is trained, and from which loss?

`Train` is what teachers and students have in common; `Loss` is what a student makes of its teachers' logits. As in
all tables, a key that would have no effect beside the others is an error.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from .schema import (
    Arguments,
    Count,
    FactoryName,
    Fraction,
    NotNegative,
    Positive,
    Seed,
    Table,
    Whole,
    check_distinct,
    list_as_tuple,
    problem,
    show,
)

LossName = Literal["distillation", "logit_matching", "dkd", "dist"]


_NUMBERS: Mapping[str, Mapping[str, float]] = {
    "distillation": {},
    "logit_matching": {},
    "dkd": {"alpha": 1.0, "beta": 8.0},
    "dist": {"inter": 1.0, "intra": 1.0},
}
"""The numbers that each loss has, with the defaults of its paper."""


class Factory(Table):
    """Something that a function of a Python module makes."""

    factory: FactoryName
    """`package.module:function`."""
    args: Arguments = Field(default_factory=dict[str, Any])
    """Keyword arguments of the function; relative file names are relative to the experiment file."""


class Augmentation(Factory):
    """A random change of an input, a pure function of it and of a random generator."""

    seed: Seed = 0
    """Seed of the generator."""


class Loss(Table):
    """`loss`: what a student makes of its teachers' logits; the name alone where its numbers are the usual ones."""

    name: LossName = "distillation"
    """Cross-entropy with soft targets, logit matching, DKD (Zhao et al. 2022) or DIST (Huang et al. 2022)."""
    alpha: NotNegative | None = None
    """Of `dkd`: weight of the target class against the rest; 1 by default."""
    beta: NotNegative | None = None
    """Of `dkd`: weight of the other classes among themselves; 8 by default."""
    inter: NotNegative | None = None
    """Of `dist`: weight of the relations between the classes of a row; 1 by default."""
    intra: NotNegative | None = None
    """Of `dist`: weight of the relations between the rows of a class; 1 by default."""

    @model_validator(mode="after")
    def _numbers_have_effect(self) -> "Loss":
        for key in ("alpha", "beta", "inter", "intra"):
            value = getattr(self, key)
            if value is not None and key not in _NUMBERS[self.name]:
                raise problem(f"no {key} with name = '{self.name}'", show(value), "drop it", key)
        return self

    @property
    def numbers(self) -> dict[str, float]:
        """The numbers that the loss has, those that were left out filled in."""
        given = {key: getattr(self, key) for key in _NUMBERS[self.name]}
        return {
            key: _NUMBERS[self.name][key] if value is None else float(value) for key, value in given.items()
        }


def as_loss(value: object) -> object:
    """`"dkd"` means `{ name = "dkd" }`."""
    if isinstance(value, str) and value not in _NUMBERS:
        known = ", ".join(f"'{name}'" for name in _NUMBERS)
        raise problem(f"one of {known}, or a table with such a name", show(value), "write one of these")
    return {"name": value} if isinstance(value, str) else value


class Train(Table):
    """How a network is trained."""

    lr: Positive
    """Learning rate at its highest."""
    epochs: Count
    """Passes over the rows."""
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    """The optimiser, with PyTorch's defaults for what is not said here."""
    momentum: Fraction = 0.0
    """Momentum of `sgd`; the others have none to set."""
    weight_decay: NotNegative = 0.0
    """Weight decay, as the optimiser understands it."""
    batch_size: Count = 128
    """Rows a step, of all ranks together."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """How the learning rate goes from `lr` to 0 (or stays) over the epochs after the warm-up."""
    warmup_epochs: Whole = 0
    """Epochs over which the learning rate rises linearly from 0 to `lr`."""
    label_smoothing: Fraction = 0.0
    """Share of the target that is spread evenly over all classes, where the labels are the target."""
    clip_norm: Positive | None = None
    """Longest that the gradient of all parameters together may be; a longer one is scaled down to it."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Decay a step of the moving average of weights and buffers, which is then what is kept."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision that the network computes in; the lower ones are autocast. The loss is always float32."""
    compile: bool = False
    """Whether the network goes through `torch.compile`."""

    @model_validator(mode="after")
    def _settings_have_effect(self) -> "Train":
        if self.momentum and self.optimizer != "sgd":
            raise problem(
                f"no momentum with optimizer = '{self.optimizer}'",
                show(self.momentum),
                "drop it, or take optimizer = 'sgd'",
                "momentum",
            )
        if self.warmup_epochs >= self.epochs:
            raise problem(
                f"fewer than epochs = {self.epochs}", show(self.warmup_epochs), "shorten it", "warmup_epochs"
            )
        return self


class TeacherTrain(Train):
    """`[[teacher]] train`: trained here, from the labels of the transfer set, before it is cached."""

    augment: Augmentation | None = None
    """Applied to every input of every epoch anew."""

    @classmethod
    def unknown_key(cls, key: str, known: list[str]) -> PydanticCustomError:
        if key == "seeds":
            return problem("no 'seeds' for a teacher", "them", "use the teacher's seed and members", key)
        if key == "checkpoint_every":
            return problem(
                "no 'checkpoint_every' for a teacher", "it", "drop it: students alone have it", key
            )
        return super().unknown_key(key, known)


class StudentTrain(Train):
    """`[[student]] train`."""

    seeds: Annotated[
        tuple[Seed, ...],
        BeforeValidator(list_as_tuple),
        AfterValidator(check_distinct),
        Field(min_length=1),
    ] = (0,)
    """The student is trained once a seed; a table gives mean and spread."""
    checkpoint_every: Count | None = None
    """Steps between two checkpoints, from which an interrupted training goes on; None for none."""
