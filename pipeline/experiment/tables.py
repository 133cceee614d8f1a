"""Tables of an experiment file: transfer set, teachers, cache, clustering, specialists, students."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import BeforeValidator, Field, PrivateAttr, model_validator

from ...storage.checks import rows_by_share
from ...storage.encodings.encoding import Encoding
from ...storage.encodings.named import encoding_named
from ...storage.errors import ConfigError
from ...storage.format.constants import MAX_CARD_CHARACTERS, MAX_CLASSES, MAX_PARTS, MAX_VIEWS
from .networks import READY, WHOLE, Network, NewNetwork
from .schema import (
    NAME,
    Count,
    Effect,
    Name,
    NotNegative,
    Positive,
    Seed,
    Share,
    Table,
    Text,
    UpToOne,
    Whole,
    check_distinct,
    check_name,
    problem,
    show,
)
from .training import Augmentation, Factory, Loss, SpecialistTrain, StudentTrain, TeacherTrain

ENCODED: Final = "encoded"
"""Value of `store_inputs` that keeps the files of images."""
AUTO: Final = "auto"
"""The value of a teacher's `head` that stands for its last linear layer."""


def _is_whole_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_sets(value: object) -> object:
    if value == "all":
        return value
    if not isinstance(value, list | tuple) or not value or not all(map(_is_whole_number, value)):
        expected = "'all', or a list of numbers of sets, from 0"
        raise problem(expected, show(value), "write sets = 'all', or list some numbers")
    return check_distinct(tuple(value))


def _check_views(value: object) -> object:
    if value not in ("all", "cycle") and not _is_whole_number(value):
        raise problem("'all', 'cycle' or the number of a view, from 0", show(value), "write one of these")
    return value


def _check_kept(value: object) -> object:
    if not isinstance(value, bool) and value != ENCODED:
        raise problem(
            f"true, false or '{ENCODED}'", show(value), "write one of these, true or false without quotes"
        )
    return value


def _check_encoding(value: object) -> object:
    try:
        encoding_named(value)
    except ConfigError as error:
        if error.where == "encoding":
            raise problem(error.expected, show(value), error.remedy) from None
        key = error.where.removeprefix("encoding: ")
        raise problem(f"{key} to be {error.expected}", error.found, error.remedy) from None
    return value


ChosenEncoding: TypeAlias = Annotated[str | dict[str, Any], BeforeValidator(_check_encoding)]
"""A name or a table of `encoding_named`."""


def _as_weights(value: object) -> object:
    """Turn `["wide", "deep"]` into equal weights."""
    if not isinstance(value, Mapping | list) or not value:
        expected = "a table of weights such as { wide = 1.0 }, or a list of teachers"
        raise problem(expected, show(value), "name at least one teacher")
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        check_distinct(tuple(value))
        return dict.fromkeys(value, 1.0)
    return value


def among_members(weights: Mapping[str, float], groups: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Return the weights of single networks: a teacher's weight is shared equally by its members in `groups`."""
    shares: dict[str, float] = {}
    for name, weight in weights.items():
        members = groups.get(name, (name,))
        for member in members:
            shares[member] = shares.get(member, 0.0) + weight / len(members)
    return shares


Weights = Annotated[dict[str, Positive], BeforeValidator(_as_weights)]
KeptInputs = Annotated[bool | Literal["encoded"], BeforeValidator(_check_kept)]
Views = Annotated[Literal["all", "cycle"] | int, BeforeValidator(_check_views)]


CardText: TypeAlias = Annotated[Text, Field(max_length=MAX_CARD_CHARACTERS)]


class Card(Table):
    """`[card]`: whose store it is. Kept when the store is begun, printed by `inspect`, and compared with nothing."""

    name: CardText | None = None
    """Name of the store for people."""
    data_set: CardText | None = None
    """The data set that the rows come from."""
    data_set_licence: CardText | None = None
    """Terms under which the data set may be used."""
    licence: CardText | None = None
    """Terms under which the store may be used, such as an SPDX identifier."""
    contact: CardText | None = None
    """Person or address to ask."""
    description: CardText | None = None
    """Anything else, of several lines if need be."""

    @property
    def texts(self) -> dict[str, str]:
        """The keys that are given."""
        return self.model_dump(exclude_none=True)


class TransferSet(Factory):
    """`[transfer_set]`: the examples that the teachers are run on."""

    order: Literal["shuffled", "as_is"] = "shuffled"
    """Order of the store's rows: a seeded permutation of the examples, or the order of the examples."""
    seed: Seed = 0
    """Seed of the permutation."""
    store_inputs: KeptInputs = True
    """Whether the store keeps the inputs, so that students need no other data set; "encoded": as the files of images."""
    digest_of: Literal["array"] = "array"
    """Content of a row's digest: dtype, shape and bytes of its input."""
    num_classes: Annotated[int, Field(ge=2)] | None = None
    """Number of classes, for a set without class_names, such as an unlabelled one."""

    effects = (Effect(("seed",), "order", ("shuffled",)),)


class EvaluationSet(Factory):
    """`[evaluation_set]`: the labelled examples that every score in a table comes from. A `[validation_set]` has this form too."""

    _content: Any = PrivateAttr(default=None)
    """Statement of its content, once it has been read."""


class Teacher(Network):
    """`[[teacher]]`: a model whose logits are cached, or several models that differ by their seed alone."""

    name: Name
    """Name in the store; with members, the common part of their names."""
    hugging_face: Text | None = None
    """Folder of a Hugging Face model for image or sequence classification, in safetensors."""
    file: Text | None = None
    """File of a whole network: `.pt2` (torch.export), or `.pt`, `.ts` (TorchScript). Loading it runs its code."""
    check_class_names: bool = True
    """Whether class names in a model's files must be those of the transfer set, in the same order."""
    weights: Text | None = None
    """File of weights; with members, `{member}` in it stands for the member's number. `factory`: the factory loads them."""
    train: TeacherTrain | None = None
    """Training that replaces `weights`."""
    head: Text | None = None
    """Module of the last linear layer, which is taken off: only its inputs are computed and encoded. "auto" looks for it."""
    members: Annotated[int, Field(ge=1, le=MAX_PARTS)] = 1
    """Number of networks; several are called `<name>-0`, `<name>-1`, …"""
    seed: Seed = 0
    """Seed of the first member's training; the other seeds count up."""

    effects = (
        Effect(
            ("weights", "weights_key", "allow_pickle", "train", "seed"),
            "source",
            ("factory", "timm", "torchvision"),
        ),
    )

    @model_validator(mode="after")
    def _weights_have_a_source(self) -> "Teacher":
        if not self.is_whole:
            if self.weights is None and self.train is None:
                remedy = "add weights or train"
                if self.source == "factory":
                    remedy += f"; write weights = '{READY}' if the factory loads them"
                raise problem("one of weights, train", "no such key", remedy)
            self.check_one_of("weights", "train")
        self.check_file_keys()
        if self.is_ready:
            self._check_ready()
        elif self.members > 1:
            check_name(self.member_names[-1])
            file = self.weights_file
            if file is not None and "{member}" not in file:
                remedy = f"write it like 'wide-{{member}}{Path(file).suffix}', or remove members"
                key = self.source if self.is_whole else "weights"
                raise problem("a file name with {member} in it", show(file), remedy, key)
        return self

    def _check_ready(self) -> None:
        """Refuse `weights = "factory"` where no function of the user returns the network, or several are asked for."""
        if self.source != "factory":
            remedy = f"name the file, or build the network in a function of yours and name that in factory, not {self.source}"
            raise problem("a file of weights", show(self.weights), remedy, "weights")
        if self.members > 1:
            remedy = "write a [[teacher]] for each, with its args"
            raise problem(
                "one network of a factory that loads its weights", show(self.members), remedy, "members"
            )

    @property
    def weights_file(self) -> str | None:
        """File or folder of the weights, `{member}` not filled in; None for a teacher without any."""
        return (None if self.is_ready else self.weights) or self.hugging_face or self.file

    @property
    def is_whole(self) -> bool:
        """Whether that file or folder holds the network as well as its weights."""
        return self.source in WHOLE

    @property
    def member_names(self) -> tuple[str, ...]:
        """The names in the store: its own, or one a member."""
        several = tuple(f"{self.name}-{member}" for member in range(self.members))
        return several if self.members > 1 else (self.name,)


class ViewAugmentation(Augmentation):
    """`[cache] augment`: the change that makes one view of a row differ from another."""

    first_view: Whole = 1
    """The first view that is augmented; earlier views are the row itself."""


class Cache(Table):
    """`[cache]`: how the teachers are run and their logits kept."""

    encoding: ChosenEncoding = "float16"
    """Encoding of the logits: a name, `{ transform = { max_kl = … } }`, `{ max_kl = …, min_temperature = … }` or `{ top_k = … }`."""
    views: Annotated[int, Field(ge=1, le=MAX_VIEWS)] = 1
    """Views of every row, the row itself included."""
    augment: ViewAugmentation | None = None
    """Augmentation of the views."""
    batch_size: Count = 256
    """Rows that a teacher is given at a time; part of a capture's identity."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision that teachers compute in; the lower ones use autocast."""
    block_rows: Count | None = None
    """Rows of a block of the store; derived from the bytes of a row by default."""
    workers: Whole = 0
    """Processes that prepare inputs; 0 for a thread of this process. The bytes do not depend on it."""
    threads: Count | None = None
    """CPU threads that a teacher on the CPU computes with; by default torch's own number. A capture records it and keeps it."""
    compile: bool = False
    """Whether the teachers go through `torch.compile`; part of a capture's identity."""
    channels_last: bool = False
    """Whether images and the teachers' weights are laid out channels last; part of a capture's identity."""

    @property
    def chosen_encoding(self) -> Encoding:
        """The encoding that `encoding` names."""
        return encoding_named(self.encoding)

    @model_validator(mode="after")
    def _views_differ(self) -> "Cache":
        if self.augment is None and self.views > 1:
            found = f"views = {self.views} without augment"
            raise problem("augment, or views = 1", found, "add augment = { factory = … }, or remove views")
        if self.augment is not None and (first := self.augment.first_view) >= self.views:
            expected = f"first_view below views = {self.views}"
            remedy = "raise views, or set first_view = 0 to augment the only one"
            raise problem(expected, f"first_view = {first}", remedy, "augment")
        return self


class Cluster(Table):
    """`[cluster]`: sets of classes that a teacher, or an ensemble, confuses."""

    teacher: Name | None = None
    """The teacher whose predictions are clustered; one member where it has several."""
    teachers: Weights | None = None
    """An ensemble in place of `teacher`, whose softened probabilities are averaged. Weight of each, on any scale;
    a list means equal weights, and a teacher with members stands for all of them, equally."""
    clusters: Annotated[int, Field(ge=1, le=MAX_CLASSES)]
    classes_per_cluster: Annotated[int, Field(ge=2)]
    """Classes of a set; sets may overlap."""
    temperature: Positive = 1.0
    """Temperature of the softmax whose covariance is taken."""
    seed: Seed = 0
    """Seed of k-means, of a projection, and of the random sets to compare with."""
    method: Literal["online", "minibatch"] = "online"
    """K-means one column at a time, as in the paper, or scikit-learn's MiniBatchKMeans."""
    restarts: Count = 10
    """Starts of k-means, of which the tightest is kept."""
    normalise: bool = False
    """Whether correlations replace covariances, so that rare classes count as much as others."""
    disjoint: bool = False
    """Whether a class is in one set at most."""
    memory: Positive = 4.0
    """GiB for matrices of classes by classes; where they do not fit, projections of them are clustered."""
    name: Name | None = None
    """Name of the clustering in the store; `<teacher>-<clusters>x<classes_per_cluster>` by default."""

    @model_validator(mode="after")
    def _has_a_source_and_a_name(self) -> "Cluster":
        self.check_one_of("teacher", "teachers")
        if not NAME.fullmatch(self.part_name):
            raise problem("a name of 64 characters at most", show(self.part_name), "set name", "name")
        return self

    @property
    def part_name(self) -> str:
        """Its name in the store."""
        return self.name or f"{self.teacher or 'ensemble'}-{self.clusters}x{self.classes_per_cluster}"

    @property
    def shares(self) -> dict[str, float]:
        """The share of each teacher in the predictions, by name; they sum to 1."""
        weights = self.teachers or {str(self.teacher): 1.0}
        total = sum(weights.values())
        return {name: weight / total for name, weight in weights.items()}


class Specialists(Table):
    """`[specialists]`: one network for each confusable set of classes, begun from the generalist's weights."""

    generalist: Name | None = None
    """The teacher whose weights they begin with; one member where it has several. `cluster.teacher` by default."""
    clustering: Name | None = None
    """The clustering in the store that has the sets; that of `[cluster]` by default."""
    sets: Annotated[Literal["all"] | tuple[Whole, ...], BeforeValidator(_check_sets)] = "all"
    """Numbers of the sets that get a specialist."""
    name: Name | None = None
    """Their name, before the number of the set; the name of the clustering by default."""
    variant: Literal["joint", "dustbin", "full"] = "joint"
    """All of the generalist's outputs, those of other classes as one dustbin; a new head with a dustbin of its own; or
    a softmax over all classes, held by the generalist's soft targets."""
    share: Share = 0.5
    """Share of special rows in every batch."""
    temperature: Positive = 1.0
    """Temperature of the generalist's soft targets and of the specialist, in the training of `full`."""
    head: Text | None = None
    """The module that `dustbin` replaces; the last linear layer of as many outputs as classes by default."""
    views: Views = "cycle"
    """Views that they learn from: all every epoch, another one each epoch, or this one."""
    seed: Seed = 0
    """Seed of the specialist of set 0; the others add the number of their set."""
    workers: Count = 1
    """Processes that train them, one specialist at a time in each."""
    capture: bool = True
    """Whether they are run over the transfer set, and their logits kept."""
    train: SpecialistTrain
    """Training of each. An epoch goes once through the special rows, and through as many others as `share` asks."""

    effects = (Effect(("temperature",), "variant", ("full",)), Effect(("head",), "variant", ("dustbin",)))

    @model_validator(mode="after")
    def _batches_hold_both(self) -> "Specialists":
        size = self.train.batch_size
        try:
            rows_by_share(size, [self.share, 1 - self.share])
        except ConfigError:
            found = f"{size}, with share = {self.share:g}"
            remedy = "raise train.batch_size, or change share"
            raise problem(
                "special rows and others in every batch", found, remedy, "train.batch_size"
            ) from None
        return self


class Combine(Table):
    """`[combine]`: generalist and specialists as one capture (equation 5 of Hinton et al. 2015)."""

    name: Name = "combined"
    """Name in the store; students may list it among their teachers."""
    top: Count = 1
    """Most likely classes of a row, by the generalist, whose specialists are active."""
    direction: Literal["pq", "qp"] = "pq"
    """Whether KL(p, q) or KL(q, p) is minimised, for p of each network and q of the combination."""
    encoding: ChosenEncoding = "float16"
    """Encoding of its logits, as that of `[cache]`, which it does not follow."""

    @property
    def chosen_encoding(self) -> Encoding:
        """The encoding that `encoding` names."""
        return encoding_named(self.encoding)


class Student(NewNetwork):
    """`[[student]]`: a network trained from the store; `targets = "hard"` is the baseline, from labels alone."""

    name: Name
    """Name in tables and files."""
    targets: Literal["soft", "hard"] = "soft"
    """Whether it learns from the teachers' softened outputs or from the labels."""
    teachers: Weights | None = None
    """Weight of each teacher in the ensemble, on any scale; a list means equal weights. A teacher with
    members stands for all of them, equally; one member is named like `wide-0`."""
    mean: Literal["arithmetic", "geometric"] = "arithmetic"
    """Mean of the teachers' softened probabilities."""
    temperature: Positive = 1.0
    """Temperature of targets and student in the training."""
    hard_weight: NotNegative = 0.0
    """Weight of the cross-entropy with the labels, beside T² times the soft one."""
    loss: Loss = Loss()
    """Loss of soft targets: a name, or a table with its numbers."""
    standardise: bool = False
    """Whether each row of logits, the teachers' and the student's, gets mean 0 and deviation 1 before the loss."""
    views: Views = "cycle"
    """All views every epoch, another one each epoch, or this one."""
    rows: UpToOne = 1.0
    """Share of the store's rows that it learns from, drawn from its seed."""
    train: StudentTrain
    """Training, once a seed."""

    effects = (
        Effect(
            ("teachers", "mean", "temperature", "hard_weight", "loss", "standardise"), "targets", ("soft",)
        ),
        Effect(("train.label_smoothing",), "targets", ("hard",)),
        Effect(("temperature",), "loss.name", ("distillation", "dkd", "dist")),
    )

    @model_validator(mode="after")
    def _soft_targets_have_teachers(self) -> "Student":
        if self.targets == "soft" and self.teachers is None:
            remedy = "add teachers = { NAME = 1.0 }, or set targets = 'hard'"
            raise problem("teachers of the soft targets", "no such key", remedy, "teachers")
        return self

    @property
    def validated_by(self) -> tuple[str, ...]:
        """The figures that held-out rows give: KL to the teachers for soft targets alone."""
        return ("accuracy", "nll") if self.targets == "hard" else ("accuracy", "nll", "kl")

    @property
    def labels_needed_for(self) -> str | None:
        """The setting that needs labels; None where none does."""
        if self.targets == "hard":
            return 'targets = "hard"'
        if self.loss.name == "dkd":
            return 'loss = "dkd"'
        return f"hard_weight = {self.hard_weight:g}" if self.hard_weight else None
