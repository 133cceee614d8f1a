"""What does an experiment file say, and is it an experiment that can be run?

1. A table of the TOML file is a class here, a key is a field with its default and its unit.
2. `parse_experiment` checks a whole document: types, ranges, unknown keys, then what one table says of
   another (a student's teachers exist, a view that is asked for is cached).
3. `load_experiment` reads the file and keeps its folder, from which relative names are resolved.

Everything that is wrong becomes one `ConfigError` whose `where` is the file and the key, as in
`mnist.toml: student[0].train.lr`. A key that would have no effect is an error as well: nobody finds out
from results that a setting was ignored.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from ..storage.encoding import Encoding
from ..storage.encodings import encoding_named
from ..storage.errors import ConfigError
from .schema import (
    NAME,
    Count,
    Name,
    NotNegative,
    Positive,
    Seed,
    Table,
    Whole,
    check_distinct,
    check_name,
    explain,
    list_as_tuple,
    nearest,
    problem,
    show,
)
from .sources import SOURCES, WHOLE
from .specialist_tables import Combine, Specialists, SpecialistTrain, check_specialist_names
from .training_tables import Augmentation, Factory, Loss, StudentTrain, TeacherTrain, Train, as_loss

__all__ = [
    "Augmentation",
    "Cache",
    "Cluster",
    "Combine",
    "EvaluationSet",
    "Experiment",
    "Factory",
    "Loss",
    "SpecialistTrain",
    "Specialists",
    "Student",
    "StudentTrain",
    "Teacher",
    "TeacherMember",
    "TeacherTrain",
    "Train",
    "TransferSet",
    "ViewAugmentation",
    "load_experiment",
    "parse_experiment",
]


def _check_encoding(value: object) -> object:
    try:
        encoding_named(value)
    except ConfigError as error:
        whole = error.where == "encoding"
        expected = (
            error.expected if whole else f"{error.where.removeprefix('encoding: ')} to be {error.expected}"
        )
        raise problem(expected, show(value) if whole else error.found, error.remedy) from None
    return value


def _check_digest_of(value: object) -> object:
    if value != "array":
        later = ", which this version cannot compute yet" if value == "file" else ""
        raise problem("'array'", f"{show(value)}{later}", "leave the key out")
    return value


def _check_views(value: object) -> object:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if not whole and value not in ("all", "cycle"):
        raise problem("'all', 'cycle' or the number of a view, from 0", show(value), "write one of these")
    return value


def _as_weights(value: object) -> object:
    """`["wide", "deep"]` means equal weights."""
    if not isinstance(value, Mapping | list) or not value:
        raise problem(
            "a table of weights such as { wide = 1.0 }, or a list of teachers",
            show(value),
            "name at least one teacher",
        )
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        check_distinct(tuple(value))
        return dict.fromkeys(value, 1.0)
    return value


class TransferSet(Factory):
    """`[transfer_set]`: the examples that the teachers are run on."""

    order: Literal["shuffled", "as_is"] = "shuffled"
    """Order of the store's rows: a seeded permutation of the examples, or their own order."""
    seed: Seed = 0
    """Seed of that permutation."""
    store_inputs: bool = True
    """Whether the store keeps the inputs, so that students need nothing else."""
    digest_of: Annotated[Literal["array"], BeforeValidator(_check_digest_of)] = "array"
    """What a row's digest is taken over: dtype, shape and bytes of its input."""
    num_classes: Annotated[int, Field(ge=2)] | None = None
    """Number of classes, for a set that has no class_names, such as an unlabelled one."""

    @model_validator(mode="after")
    def _seed_has_effect(self) -> "TransferSet":
        if self.order == "as_is" and "seed" in self.model_fields_set:
            raise problem("no seed with order = 'as_is'", show(self.seed), "drop one of the two", "seed")
        return self


class EvaluationSet(Factory):
    """`[evaluation_set]`: the labelled examples that every accuracy in a table comes from."""


class ViewAugmentation(Augmentation):
    """`[cache] augment`: what makes one view of a row differ from another."""

    first_view: Whole = 1
    """The first view that is augmented; those before it are the row as it is."""


class Teacher(Factory):
    """`[[teacher]]`: a model whose logits are cached, or several that differ by their seed alone.

    In the place of `factory` one of the other sources may stand; then `factory` is what that source means.
    """

    name: Name
    """Its name in the store; with members, the common part of their names."""
    hugging_face: Annotated[str, Field(min_length=1)] | None = None
    """Folder of a Hugging Face model for image or sequence classification, in safetensors."""
    file: Annotated[str, Field(min_length=1)] | None = None
    """File of a whole network: `.pt2` (torch.export), or `.pt`, `.ts` (TorchScript). Loading it runs what it holds."""
    timm: Annotated[str, Field(min_length=1)] | None = None
    """Name of a network of timm; its weights come from `weights` or from `train`."""
    torchvision: Annotated[str, Field(min_length=1)] | None = None
    """Name of a classifier of torchvision; its weights come from `weights` or from `train`."""
    check_class_names: bool = True
    """Whether the class names that a model states must be those of the transfer set, in its order."""
    weights: Annotated[str, Field(min_length=1)] | None = None
    """File of its weights; with members, `{member}` in it stands for the member's number."""
    allow_pickle: bool = False
    """Whether `weights` may be a `.pt` or `.pth` file instead of safetensors."""
    train: TeacherTrain | None = None
    """How to train it, where there are no weights."""
    members: Count = 1
    """How many networks; more than one are called `<name>-0`, `<name>-1`, …"""
    seed: Seed = 0
    """Seed of the first member's training; the others count up from it."""

    @model_validator(mode="before")
    @classmethod
    def _factory_of_the_source(cls, data: object) -> object:
        if not isinstance(data, Mapping):
            return data
        given = [key for key in ("factory", *SOURCES) if key in data]
        if len(given) > 1:
            one = f"one of factory, {', '.join(SOURCES)}"
            raise problem(one, " and ".join(given), "drop all but one")
        if not given or given == ["factory"]:
            return data
        filled = {**data, "factory": SOURCES[given[0]]}
        args = data.get("args", {})
        if given[0] not in WHOLE and isinstance(args, Mapping):
            if "model" in args:
                raise problem(f"no model beside {given[0]}", show(args["model"]), "drop it", "args.model")
            filled["args"] = {**args, "model": data[given[0]]}
        return filled

    @model_validator(mode="after")
    def _whole_models_have_weights(self) -> "Teacher":
        for key in sorted(WHOLE):
            if getattr(self, key) is not None:
                for other in ("weights", "allow_pickle", "train", "seed"):
                    if other in self.model_fields_set:
                        raise problem(f"no {other} with {key}", "it", "drop one of the two", other)
        return self

    @model_validator(mode="after")
    def _weights_or_train(self) -> "Teacher":
        if self.hugging_face is not None or self.file is not None:
            key = "file" if self.hugging_face is None else "hugging_face"
            self._check_members(key, getattr(self, key))
            return self
        if (self.weights is None) == (self.train is None):
            raise problem(
                "either weights or train",
                "neither" if self.train is None else "both",
                "name a safetensors file in weights, or say in train how to train it",
            )
        if self.weights is None and self.allow_pickle:
            raise problem("no allow_pickle without weights", "it", "drop it", "allow_pickle")
        self._check_members("weights", self.weights)
        return self

    def _check_members(self, key: str, file: str | None) -> None:
        if self.members > 1 and file is not None and "{member}" not in file:
            raise problem(
                "a file a member, with {member} in the name",
                show(file),
                f"write it like 'wide-{{member}}{Path(file).suffix}', or drop members",
                key,
            )
        if self.members > 1:
            check_name(f"{self.name}-{self.members - 1}")

    @property
    def weights_file(self) -> str | None:
        """File or folder that its weights are in, `{member}` not filled in; None where it is trained here."""
        return self.weights or self.hugging_face or self.file

    @property
    def is_whole(self) -> bool:
        """Whether that file or folder holds the network as well as its weights."""
        return self.hugging_face is not None or self.file is not None

    @property
    def member_names(self) -> tuple[str, ...]:
        """The names in the store: its own, or one a member."""
        if self.members == 1:
            return (self.name,)
        return tuple(f"{self.name}-{member}" for member in range(self.members))


class Cache(Table):
    """`[cache]`: how the teachers are run and their logits kept."""

    encoding: Annotated[str | dict[str, Any], BeforeValidator(_check_encoding)] = "float16"
    """How the logits are stored: a name, `{ max_kl = …, min_temperature = … }` or `{ top_k = … }`."""
    views: Count = 1
    """Augmentations of every row, counting the row as it is."""
    augment: ViewAugmentation | None = None
    """What makes the views differ."""
    batch_size: Count = 256
    """Rows a teacher is given at a time; part of a capture's identity."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision that the teachers compute in; the lower ones are autocast."""
    block_rows: Count | None = None
    """Rows a block of the store; chosen from the size of a row where it is left out."""
    workers: Whole = 0
    """Processes that prepare the inputs; 0 for a thread of this one. The bytes do not depend on it."""
    compile: bool = False
    """Whether the teachers go through `torch.compile`; part of a capture's identity."""
    channels_last: bool = False
    """Whether images and the teachers' weights are laid out channels last; part of a capture's identity."""

    @property
    def chosen_encoding(self) -> Encoding:
        """The encoding that is meant."""
        return encoding_named(self.encoding)

    @model_validator(mode="after")
    def _views_differ(self) -> "Cache":
        if self.augment is None and self.views > 1:
            raise problem(
                "an augment, without which every view is the same",
                f"views = {self.views} alone",
                "add augment = { factory = … }, or drop views",
            )
        if self.augment is not None and self.augment.first_view >= self.views:
            raise problem(
                f"an augmented view among views = {self.views}",
                f"first_view = {self.augment.first_view}",
                "raise views, or set first_view = 0 to augment the only one",
                "augment",
            )
        return self


class Cluster(Table):
    """`[cluster]`: sets of classes that a teacher, or an ensemble, confuses."""

    teacher: Name | None = None
    """Whose predictions; one member where it has several."""
    teachers: Annotated[dict[str, Positive], BeforeValidator(_as_weights)] | None = None
    """Instead of `teacher`: an ensemble, whose softened probabilities are averaged. Weight of each, any scale; a list
    means equal weights, and a teacher with members stands for all of them, equally."""
    clusters: Count
    """Number of sets."""
    classes_per_cluster: Annotated[int, Field(ge=2)]
    """Classes a set; sets may overlap."""
    temperature: Positive = 1.0
    """Of the softmax whose covariance is taken."""
    seed: Seed = 0
    """Seed of k-means, of a projection and of the random sets to compare with."""
    method: Literal["online", "minibatch"] = "online"
    """K-means one column at a time, as in the paper, or scikit-learn's MiniBatchKMeans."""
    restarts: Count = 10
    """Starts of k-means, of which the tightest is kept."""
    normalise: bool = False
    """Whether correlations are clustered instead of covariances, so that rare classes count as much as others."""
    disjoint: bool = False
    """Whether no class is in two sets."""
    memory: Positive = 4.0
    """GiB that matrices of classes by classes may take; where they do not fit, projections of them are clustered."""
    name: Name | None = None
    """Name of the clustering in the store; `<teacher>-<clusters>x<classes_per_cluster>` by default."""

    @model_validator(mode="after")
    def _one_source(self) -> "Cluster":
        if (self.teacher is None) == (self.teachers is None):
            raise problem(
                "either teacher or teachers",
                "neither" if self.teacher is None else "both",
                "name the teacher whose predictions are clustered",
                "teacher",
            )
        return self

    @model_validator(mode="after")
    def _part_has_a_name(self) -> "Cluster":
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

    def of_members(self, groups: Mapping[str, Sequence[str]]) -> "Cluster":
        """The same with every teacher that has several members in their place. groups: members of each, by name."""
        if self.teachers is None or all(len(groups.get(name, ())) < 2 for name in self.teachers):
            return self
        weights: dict[str, float] = {}
        for name, weight in self.teachers.items():
            members = groups.get(name, (name,))
            for member in members:
                weights[member] = weights.get(member, 0.0) + weight / len(members)
        return self.model_copy(update={"teachers": weights})


class Student(Factory):
    """`[[student]]`: a network trained from the store.

    With `targets = "hard"` it is the baseline, trained on the labels alone: then nothing that is about teachers
    may be given.
    """

    name: Name
    """Its name in tables and files."""
    targets: Literal["soft", "hard"] = "soft"
    """Whether it learns from the teachers' softened outputs or from the labels."""
    teachers: Annotated[dict[str, Positive], BeforeValidator(_as_weights)] | None = None
    """Weight of each teacher in the ensemble, any scale; a list means equal weights. A teacher with
    members stands for all of them, equally; one member is named like `wide-0`."""
    mean: Literal["arithmetic", "geometric"] = "arithmetic"
    """Of the teachers' softened probabilities."""
    temperature: Positive = 1.0
    """Of targets and student alike during the training."""
    hard_weight: NotNegative = 0.0
    """Weight of the cross-entropy with the labels, beside T² times the soft one."""
    loss: Annotated[Loss, BeforeValidator(as_loss)] = Loss()
    """What is made of the teachers' logits: a name, or a table with its numbers."""
    standardise: bool = False
    """Whether rows of logits, the teachers' and its own, are brought to mean 0 and deviation 1 before the loss."""
    views: Annotated[Literal["all", "cycle"] | int, BeforeValidator(_check_views)] = "cycle"
    """All views every epoch, another one each epoch, or this one."""
    train: StudentTrain
    """How it is trained, once a seed."""

    @model_validator(mode="after")
    def _targets_have_a_source(self) -> "Student":
        if self.targets == "soft" and self.teachers is None:
            raise problem(
                "the teachers that the soft targets come from",
                "no such key",
                "add teachers = { NAME = 1.0 }, or set targets = 'hard'",
                "teachers",
            )
        if self.targets == "hard":
            for key in ("teachers", "mean", "temperature", "hard_weight", "loss", "standardise"):
                if key in self.model_fields_set:
                    value = self.loss.name if key == "loss" else getattr(self, key)
                    raise problem(f"no {key} with targets = 'hard'", show(value), "drop it", key)
        return self

    @model_validator(mode="after")
    def _loss_takes_the_settings(self) -> "Student":
        if self.targets == "soft" and self.train.label_smoothing:
            raise problem(
                "no label_smoothing with targets = 'soft'",
                show(self.train.label_smoothing),
                "drop it, or set targets = 'hard'",
                "train.label_smoothing",
            )
        if self.loss.name == "logit_matching" and "temperature" in self.model_fields_set:
            raise problem(
                "no temperature with loss = 'logit_matching'",
                show(self.temperature),
                "drop it",
                "temperature",
            )
        return self

    @property
    def labels_needed_for(self) -> str | None:
        """The setting that the labels are needed for; None where they are not."""
        if self.targets == "hard":
            return 'targets = "hard"'
        if self.loss.name == "dkd":
            return 'loss = "dkd"'
        return f"hard_weight = {self.hard_weight:g}" if self.hard_weight else None


@dataclass(frozen=True)
class TeacherMember:
    """One network to be cached under one name."""

    name: str
    """Its name in the store."""
    seed: int
    """Seed that it is trained from."""
    weights: Path | None
    """File of its weights, or folder of the whole model, resolved; None where it is trained here."""
    teacher: Teacher
    """The table that it comes from."""


class Experiment(Table):
    """A whole experiment file."""

    transfer_set: TransferSet
    """What the teachers are run on."""
    evaluation_set: EvaluationSet | None = None
    """What is evaluated; None where there is nothing to evaluate on."""
    teachers: Annotated[tuple[Teacher, ...], BeforeValidator(list_as_tuple), Field(min_length=1)] = Field(
        alias="teacher"
    )
    """In the order in which they are cached."""
    cache: Cache = Field(default_factory=Cache)
    """How they are cached."""
    cluster: Cluster | None = None
    """What is clustered; None for nothing."""
    specialists: Specialists | None = None
    """Specialists of the sets of a clustering; None for none."""
    combine: Combine | None = None
    """Generalist and specialists as one capture; None for none."""
    students: Annotated[tuple[Student, ...], BeforeValidator(list_as_tuple)] = Field(
        default=(), alias="student"
    )
    """In the order in which they are trained."""

    _base: Path = PrivateAttr(default_factory=Path)

    @property
    def base(self) -> Path:
        """Folder from which the experiment's relative file names are resolved."""
        return self._base

    @model_validator(mode="after")
    def _tables_agree(self) -> "Experiment":
        names: dict[str, str] = {}
        for index, teacher in enumerate(self.teachers):
            for name in {teacher.name, *teacher.member_names}:
                if name in names:
                    raise _not_unique(f"teacher[{index}].name", name, names[name])
                names[name] = f"teacher[{index}]"
        members = [name for teacher in self.teachers for name in teacher.member_names]
        groups = [teacher.name for teacher in self.teachers]

        clustered = None if self.cluster is None else self.cluster.teacher
        if clustered is not None and clustered not in members:
            named = clustered in groups
            raise problem(
                "one teacher",
                f"'{clustered}'" + (", which has several members" if named else ", which is none"),
                f"did you mean '{clustered}-0'?" if named else nearest(clustered, members),
                "cluster.teacher",
            )
        for name in (self.cluster and self.cluster.teachers) or {}:
            if name not in names:
                remedy = nearest(name, sorted(names))
                raise problem("a teacher's name", show(name), remedy, "cluster.teachers")
        if self.specialists is not None:
            self._check_specialists(self.specialists, names, members)
        if self.combine is not None:
            self._check_combination(self.combine, names)
            names[self.combine.name] = "combine"
        students: dict[str, str] = {}
        for index, student in enumerate(self.students):
            key = f"student[{index}]"
            if student.name in students:
                raise _not_unique(f"{key}.name", student.name, students[student.name])
            students[student.name] = key
            for name in student.teachers or {}:
                if name not in names:
                    remedy = nearest(name, sorted(names))
                    raise problem("a teacher's name", show(name), remedy, f"{key}.teachers")
            if isinstance(student.views, int) and student.views >= self.cache.views:
                raise problem(
                    f"a view below cache.views = {self.cache.views}",
                    str(student.views),
                    "cache more views, or take another",
                    f"{key}.views",
                )
        return self

    @model_validator(mode="after")
    def _cluster_names_members(self) -> "Experiment":
        if self.cluster is None:
            return self
        cluster = self.cluster.of_members({teacher.name: teacher.member_names for teacher in self.teachers})
        return self if cluster is self.cluster else self.model_copy(update={"cluster": cluster})

    def _check_specialists(self, table: Specialists, names: Mapping[str, str], members: list[str]) -> None:
        """Refuse specialists of what is not there, or with names that are taken."""
        own = None if self.cluster is None else self.cluster.part_name
        if table.clustering is None and own is None:
            raise problem(
                "the clustering whose sets they are for",
                "neither [cluster] nor specialists.clustering",
                "add [cluster], or name a clustering of the store",
                "specialists.clustering",
            )
        if table.generalist is None and (self.cluster is None or self.cluster.teacher is None):
            raise problem(
                "the teacher that they begin from",
                "neither cluster.teacher nor specialists.generalist",
                "name a teacher",
                "specialists.generalist",
            )
        if table.generalist is not None and table.generalist not in members:
            groups = [teacher.name for teacher in self.teachers]
            named = table.generalist in groups
            raise problem(
                "one teacher",
                f"'{table.generalist}'" + (", which has several members" if named else ", which is none"),
                f"did you mean '{table.generalist}-0'?" if named else nearest(table.generalist, members),
                "specialists.generalist",
            )
        if isinstance(table.views, int) and table.views >= self.cache.views:
            raise problem(
                f"a view below cache.views = {self.cache.views}",
                str(table.views),
                "cache more views, or take another",
                "specialists.views",
            )
        known = self.cluster.clusters if self.cluster is not None and own == self.clustering_name else None
        numbers = range(known or 0) if table.sets == "all" else table.sets
        if known is not None and max(numbers) >= known:
            raise problem(
                f"sets from 0 to {known - 1}, as many as cluster.clusters",
                str(max(numbers)),
                "name sets that there are",
                "specialists.sets",
            )
        check_specialist_names(self.specialist_prefix, max(numbers, default=0) + 1)
        for number in numbers:
            name = f"{self.specialist_prefix}-{number}"
            if name in names:
                raise _not_unique("specialists.name", name, names[name])

    def _check_combination(self, table: Combine, names: Mapping[str, str]) -> None:
        """Refuse to put together what is not kept."""
        if self.specialists is None or not self.specialists.capture or self.specialists.variant == "full":
            found = "no [specialists]"
            if self.specialists is not None:
                found = (
                    "specialists.variant = 'full'"
                    if self.specialists.capture
                    else "specialists.capture = false"
                )
            raise problem(
                "captured specialists with a dustbin class", found, "change it, or drop [combine]", "combine"
            )
        if table.direction == "qp":
            own = self.cluster is not None and self.clustering_name == self.cluster.part_name
            overlap = own and self.cluster is not None and not self.cluster.disjoint
            if overlap or table.top != 1:
                raise problem(
                    "disjoint sets and top = 1: KL(q, p) has a closed form for one active specialist alone",
                    f"top = {table.top}" if table.top != 1 else "sets that overlap",
                    "set cluster.disjoint = true and leave top out, or take direction = 'pq'",
                    "combine.direction",
                )
        if table.name in names:
            raise _not_unique("combine.name", table.name, names[table.name])
        prefix, _, number = table.name.rpartition("-")
        if prefix == self.specialist_prefix and number.isdecimal():
            raise _not_unique("combine.name", table.name, "specialists")

    @property
    def clustering_name(self) -> str:
        """The clustering that the specialists' sets come from; they must be asked for."""
        assert self.specialists is not None
        if self.specialists.clustering is not None:
            return self.specialists.clustering
        assert self.cluster is not None  # it was checked: one of the two names it
        return self.cluster.part_name

    @property
    def specialist_prefix(self) -> str:
        """What the specialists' names begin with."""
        assert self.specialists is not None
        return self.specialists.name or self.clustering_name

    @property
    def generalist(self) -> TeacherMember:
        """The teacher that the specialists begin from; they must be asked for."""
        assert self.specialists is not None
        name = self.specialists.generalist
        if name is None:
            assert (
                self.cluster is not None and self.cluster.teacher is not None
            )  # it was checked: one names it
            name = self.cluster.teacher
        return next(member for member in self.teacher_members() if member.name == name)

    def teacher_members(self) -> tuple[TeacherMember, ...]:
        """Every network to be cached, in order: teachers with members expanded, seeds counted up."""
        return tuple(
            TeacherMember(
                name,
                teacher.seed + member,
                None
                if teacher.weights_file is None
                else self.base / teacher.weights_file.replace("{member}", str(member)),
                teacher,
            )
            for teacher in self.teachers
            for member, name in enumerate(teacher.member_names)
        )

    def teacher_weights(self, student: Student) -> dict[str, float]:
        """The ensemble that `student` learns from, by names in the store; the weights sum to 1.

        A teacher's weight is shared equally by its members. Empty for a student with hard targets.
        """
        groups = {teacher.name: teacher.member_names for teacher in self.teachers}
        given = student.teachers or {}
        total = sum(given.values())
        shares: dict[str, float] = {}
        for name, weight in given.items():
            members = groups.get(name, (name,))
            for member in members:
                shares[member] = shares.get(member, 0.0) + weight / total / len(members)
        return shares


def _not_unique(key: str, name: str, other: str) -> PydanticCustomError:
    return problem("a name of its own", f"'{name}', which {other} has", "rename one of them", key)


# From a document to an experiment


def load_experiment(path: str | Path) -> Experiment:
    """Read an experiment file.

    Returns the experiment with `base` = the folder of the file. Raises ConfigError, with the file and the
    key or line in `where`, when it cannot be read, is not TOML, or is not an experiment.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode()
        document = tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError(
            str(path), expected="an experiment file", found="no such file", remedy="check the path"
        ) from None
    except OSError as error:
        raise ConfigError(
            str(path),
            expected="a file that can be read",
            found=(error.strerror or type(error).__name__).lower(),
            remedy="name a TOML file that you may read",
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            str(path),
            expected="TOML, which is UTF-8 text",
            found=f"byte 0x{error.object[error.start]:02x} at offset {error.start}",
            remedy="save the file as UTF-8",
        ) from None
    except tomllib.TOMLDecodeError as error:
        reason, _, place = str(error).partition(" (at ")
        raise ConfigError(
            f"{path}: {place.rstrip(')') or 'whole file'}",
            expected="TOML",
            found=f"a syntax error ({reason[:1].lower()}{reason[1:]})",
            remedy="correct it there or on the line before",
        ) from None
    return parse_experiment(document, where=str(path), base=path.parent)


def parse_experiment(document: Mapping[str, object], *, where: str, base: Path) -> Experiment:
    """Check a document that has the form of an experiment file.

    document: tables, lists and scalars as `tomllib` gives them.
    where: what errors call the document, normally its path.
    base: folder from which relative file names are resolved.
    Raises ConfigError for the first problem; its remedy says how many more there are.

    >>> parse_experiment({"transferset": {}}, where="a.toml", base=Path())
    Traceback (most recent call last):
    logitstore.storage.errors.ConfigError: a.toml: transferset: expected a known key, found 'transferset'; \
did you mean 'transfer_set'?
    """
    try:
        experiment = Experiment.model_validate(dict(document))
    except ValidationError as error:
        raise explain(error, where) from None
    experiment._base = base
    return experiment
