"""Tables of how a network is trained, and from which loss."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, model_validator

from ..factories.in_hand import InHand
from .schema import (
    Arguments,
    Count,
    Effect,
    FactoryName,
    Fraction,
    Listed,
    NotNegative,
    Positive,
    Seed,
    Share,
    Table,
    Whole,
    check_distinct,
    checked,
    problem,
    show,
)

_NUMBERS: Mapping[str, tuple[str, ...]] = {"dkd": ("alpha", "beta"), "dist": ("inter", "intra")}
"""Keys of `Loss` that belong to one loss each."""


class Factory(Table):
    """An object that a function of a Python module makes."""

    factory: FactoryName
    """`package.module:function`."""
    args: Arguments = Field(default_factory=dict[str, Any])
    """Keyword arguments of the function; relative file names start at the folder of the experiment file."""

    _in_hand: InHand | None = PrivateAttr(default=None)

    @property
    def in_hand(self) -> InHand | None:
        """The product itself, passed by a caller of Python; None for a table of a file."""
        return self._in_hand


_MADE = TypeVar("_MADE", bound=Factory)


def of_thing(table: type[_MADE], given: InHand, where: str, **keys: Any) -> _MADE:
    """Make the table of a thing in hand. where: the table in messages. keys: its other keys. Raises ConfigError."""
    made = checked(table, where, factory=given.factory, args=dict(given.args), **keys)
    made._in_hand = given
    return made


class Augmentation(Factory):
    """A random change of an input: a pure function of the input and of a random generator."""

    seed: Seed = 0


class Loss(Table):
    """`loss`: the loss between a student's logits and its teachers'. Each number has its paper's default."""

    name: Literal["distillation", "logit_matching", "dkd", "dist"] = "distillation"
    """Cross-entropy with soft targets, logit matching, DKD (Zhao et al. 2022) or DIST (Huang et al. 2022)."""
    alpha: NotNegative = 1.0
    """Weight of the target class against the rest, in `dkd`."""
    beta: NotNegative = 8.0
    """Weight of the other classes among themselves, in `dkd`."""
    inter: NotNegative = 1.0
    """Weight of the relations between the classes of a row, in `dist`."""
    intra: NotNegative = 1.0
    """Weight of the relations between the rows of a class, in `dist`."""

    effects = tuple(Effect(keys, "name", (name,)) for name, keys in _NUMBERS.items())

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, data: object) -> object:
        return {"name": data} if isinstance(data, str) else data

    @property
    def numbers(self) -> dict[str, float]:
        """The numbers of the chosen loss."""
        return {key: getattr(self, key) for key in _NUMBERS.get(self.name, ())}


class Train(Table):
    """Settings of a training."""

    lr: Positive
    """Highest learning rate."""
    epochs: Count
    """Passes over the rows."""
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    """The optimiser; parameters without a key here keep PyTorch's defaults."""
    momentum: Fraction = 0.0
    weight_decay: NotNegative = 0.0
    batch_size: Count = 128
    """Rows of a step, of all ranks together."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """Whether the learning rate stays at `lr` after the warm-up, or falls to 0 over the epochs left."""
    warmup_epochs: Whole = 0
    """Epochs over which the learning rate rises linearly from 0 to `lr`."""
    label_smoothing: Fraction = 0.0
    """Share of a label's target that is spread evenly over all classes."""
    clip_norm: Positive | None = None
    """Maximum norm of the gradient of all parameters; larger gradients are clipped to it."""
    ema: Share | None = None
    """Decay a step of the moving average of weights and buffers; the average is kept instead of the last step."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision that the network computes in; the lower two use autocast. The loss is always float32."""
    compile: bool = False
    """Whether the network goes through `torch.compile`."""
    log: Literal["tensorboard"] | None = None
    """Where the curves of the training are written, beside its `.metrics.jsonl`: TensorBoard's files, or nowhere."""

    effects = (Effect(("momentum",), "optimizer", ("sgd",)),)

    @model_validator(mode="after")
    def _warm_up_ends(self) -> "Train":
        if self.warmup_epochs >= self.epochs:
            expected = f"fewer than epochs = {self.epochs}"
            raise problem(expected, show(self.warmup_epochs), "lower warmup_epochs", "warmup_epochs")
        return self


def _check_validation(value: object) -> object:
    is_share = isinstance(value, float) and 0 < value < 1
    if not is_share and value not in (None, "evaluation_set"):
        expected = "a share of the rows between 0 and 1, or 'evaluation_set'"
        raise problem(expected, show(value), "write one of these, or remove it and add [validation_set]")
    return value


ValidatedOn = Annotated[float | Literal["evaluation_set"], BeforeValidator(_check_validation)]


class ValidatedTrain(Train):
    """Settings of a training that may be validated after its epochs, on examples that it does not learn from."""

    validation: ValidatedOn | None = None
    """Share of the store's rows that it does not learn from, and is validated on; or the evaluation set, which selects
    nothing. By default `[validation_set]`, if there is one."""
    validate_every: Count = 1
    """Epochs between two validations; the last epoch is always validated."""
    keep: Literal["last", "best"] = "last"
    """Weights that become the result: of the last epoch, or of the best validated one. The other ones are kept beside."""
    best_by: Literal["accuracy", "nll", "kl"] = "accuracy"
    """Figure of the best epoch: the highest accuracy, or the lowest NLL of the labels or KL to the teachers."""

    @property
    def held_out(self) -> float | None:
        """Share of the rows that it does not learn from; None if it learns from all."""
        return self.validation if isinstance(self.validation, float) else None


IDLE_KEYS: Final = frozenset(
    {"checkpoint_every", "log", "validation", "validate_every", "keep", "best_by", "workers"}
)
"""Keys of a training that `settled` leaves out of its identity: `validation_identity` states those that choose weights."""


def validation_identity(train: ValidatedTrain, content: Callable[[], Any]) -> dict[str, Any]:
    """Return the part of an identity that follows from validation: the rows held out, and the choice of the best epoch.

    content: states the content of the validation set; called only if it chooses the weights.
    """
    held: dict[str, Any] = {} if train.held_out is None else {"held_out": train.held_out}
    if train.keep == "best":
        held["keep"] = {
            "best_by": train.best_by,
            "validate_every": train.validate_every,
            **({"validation_set": content()} if train.held_out is None else {}),
        }
    return {"validation": held} if held else {}


class TeacherTrain(ValidatedTrain):
    """`[[teacher]] train`: training from the labels of the transfer set, before the capture."""

    augment: Augmentation | None = None
    """Applied to every input anew in every epoch."""

    elsewhere = (
        ("seeds", "set seed and members of the teacher"),
        ("checkpoint_every", "remove it: a teacher's training has no checkpoints"),
        ("workers", "set workers in [cache], for the capture, or in [[student]] train"),
    )


class StudentTrain(ValidatedTrain):
    """`[[student]] train`."""

    seeds: Annotated[Listed[Seed], AfterValidator(check_distinct), Field(min_length=1)] = (0,)
    """One training for each; tables show mean and spread."""
    checkpoint_every: Count | None = None
    """Steps between two checkpoints, from which an interrupted training resumes; none by default."""
    workers: Whole = 0
    """Processes of each rank that decode and augment inputs; 0 for threads of this process. The batches are the same."""


class SpecialistTrain(ValidatedTrain):
    """`[specialists] train`: the training of each specialist, from the generalist's weights."""

    # The correction for the shares of a batch needs posteriors, which smoothed labels do not give.
    label_smoothing: Annotated[float, Field(ge=0, le=0)] = 0.0
    """Always 0."""
    checkpoint_every: Count | None = None
    """Steps between two checkpoints, from which an interrupted training resumes; none by default."""

    elsewhere = (
        ("seeds", "set specialists.seed, which counts up from set to set"),
        ("workers", "set specialists.workers, the processes that train one specialist each"),
    )
