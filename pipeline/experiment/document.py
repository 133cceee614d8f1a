"""The experiment file as a whole: references between tables, names, and the reading of the file."""

import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, PrivateAttr, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from ...storage.errors import ConfigError
from ...storage.format.constants import MAX_PARTS, TRANSFORM
from ..factories.call import suggest
from ..factories.products import local_code_of
from ..factories.read_files import files_read
from .reading import parse_toml, read_text, syntax_error
from .schema import NAME, Listed, Table, explain, noting, problem, raise_all, show
from .tables import (
    Cache,
    Card,
    Cluster,
    Combine,
    EvaluationSet,
    Specialists,
    Student,
    Teacher,
    TransferSet,
    among_members,
)
from .training import Factory, SpecialistTrain, ValidatedTrain


@dataclass(frozen=True)
class TeacherMember:
    """One network that is cached under one name."""

    name: str
    """Name in the store."""
    seed: int
    """Seed of its training."""
    weights: Path | None
    """File of its weights, or folder of the whole model, resolved; None where it is trained here, or the factory loads them."""
    teacher: Teacher
    """Its table."""
    base: Path = Path()
    """Folder of the experiment file."""
    validation_set: EvaluationSet | None = None
    """`[validation_set]` of the experiment."""

    @property
    def source(self) -> dict[str, str]:
        """Digests of the local code that makes it, and of that which changes its inputs in training."""
        return local_code_of(self._tables, base=self.base)

    @property
    def files_read(self) -> dict[str, str]:
        """Digests of the files that this code is given as arguments."""
        return files_read(self._tables, base=self.base)

    @property
    def _tables(self) -> list[Factory]:
        teacher, augment = self.teacher, self.teacher.train and self.teacher.train.augment
        return [teacher, *([augment] if augment else [])]


class Experiment(Table):
    """A whole experiment file; each table's class documents it."""

    card: Card = Field(default_factory=Card)
    transfer_set: TransferSet
    validation_set: EvaluationSet | None = None
    """Labelled examples on which trainings are validated, epoch by epoch."""
    evaluation_set: EvaluationSet | None = None
    teachers: Listed[Teacher] = Field(alias="teacher", min_length=1)
    """Teachers, in the order of their captures."""
    cache: Cache = Field(default_factory=Cache)
    cluster: Cluster | None = None
    specialists: Specialists | None = None
    combine: Combine | None = None
    students: Listed[Student] = Field(default=(), alias="student")
    """Students, in the order of their trainings."""

    _base: Path = PrivateAttr(default_factory=Path)

    @property
    def base(self) -> Path:
        """Folder that relative file names start from."""
        return self._base

    @property
    def _groups(self) -> dict[str, tuple[str, ...]]:
        """The names in the store of each teacher's networks."""
        return {teacher.name: teacher.member_names for teacher in self.teachers}

    @model_validator(mode="after")
    def _tables_agree(self) -> "Experiment":
        """Refuse names that are taken or unknown; return the experiment with `cluster.teachers` as members."""
        problems = list[PydanticCustomError]()
        owners: dict[str, str] = {}  # of each name in the store, or of several members: its table
        for index, teacher in enumerate(self.teachers):
            with noting(problems):
                for name in dict.fromkeys((teacher.name, *teacher.member_names)):
                    _claim(owners, name, f"teacher[{index}].name")
            with noting(problems):
                self._check_head(teacher, f"teacher[{index}].head")
            with noting(problems):
                self._check_validation(teacher.train, f"teacher[{index}].train", ("accuracy", "nll"))
        raise_all(problems)  # the others refer to these names
        if self.cluster is not None:
            with noting(problems):
                if self.cluster.teacher is not None:
                    self._check_member(self.cluster.teacher, "cluster.teacher")
                _check_known(self.cluster.teachers or (), owners, "cluster.teachers")
        with noting(problems):
            if self.specialists is not None:
                self._check_specialists(self.specialists, owners)
        with noting(problems):
            if self.combine is not None:
                self._check_combination(self.combine, owners)
        students: dict[str, str] = {}
        for index, student in enumerate(self.students):
            with noting(problems):
                _claim(students, student.name, f"student[{index}].name")
            with noting(problems):
                names = [name for name in student.teachers or () if not self._may_be_compressed(name, owners)]
                _check_known(names, owners, f"student[{index}].teachers")
            with noting(problems):
                self._check_view(student.views, f"student[{index}].views")
            with noting(problems):
                self._check_validation(student.train, f"student[{index}].train", student.validated_by)
        raise_all(problems)
        if self.cluster is None or self.cluster.teachers is None:
            return self
        weights = among_members(self.cluster.teachers, self._groups)
        cluster = self.cluster.model_copy(update={"teachers": weights})
        return self.model_copy(update={"cluster": cluster})

    def _may_be_compressed(self, name: str, owners: Mapping[str, str]) -> bool:
        """Return whether a name may be that of a capture that `logitstore compress` made of one of this experiment.

        Such a name begins with that of its source, as in `wide-kl1e-3`; a number after it is that of a member.
        """
        if not NAME.fullmatch(name):
            return False
        prefix, _, number = name.rpartition("-")
        if self.specialists is not None and prefix == self.specialist_prefix and number.isdecimal():
            return False
        ends = [name.removeprefix(f"{owner}-") for owner in owners if name.startswith(f"{owner}-")]
        return any(end and not end.isdecimal() for end in ends)

    def compressed_captures(self, student: Student) -> dict[str, str]:
        """Return the captures that a student names and that no stage makes, each with its likely source."""
        made = [member.name for member in self.teacher_members()]
        made += [] if self.combine is None else [self.combine.name]
        return {
            name: max(
                (source for source in made if name.startswith(f"{source}-")), key=len, default="TEACHER"
            )
            for name in self.teacher_weights(student)
            if name not in made
        }

    def _check_head(self, teacher: Teacher, key: str) -> None:
        """Refuse a head that is taken off for an encoding that needs the dense rows."""
        if teacher.head is not None and self.cache.chosen_encoding.kind != TRANSFORM:
            found = f"cache.encoding = {show(self.cache.encoding)}"
            remedy = "set cache.encoding = { transform = { max_kl = 1e-2 } }, or remove head"
            raise problem("the transform encoding", found, remedy, key)

    def _check_validation(self, train: ValidatedTrain | None, key: str, figures: Sequence[str]) -> None:
        """Refuse a validation without examples, and the choice of weights on the examples of the scores.

        figures: those that can be computed of held-out rows.
        """
        if train is None:
            return
        source = self.validation_source(train)
        missing = "neither validation nor [validation_set]"
        remedy = "set validation = 0.1, a share of the rows that it does not learn from"
        if isinstance(train, SpecialistTrain):
            # A set has other shares of the classes than its batches, for which a specialist's logits are.
            source, missing = (source if source == "held_out" else None), "no validation"
            if train.validation == "evaluation_set":
                raise problem("a share of the rows", show(train.validation), remedy, f"{key}.validation")
        else:
            remedy += ", or add [validation_set]"
        if train.validation == "evaluation_set" and self.evaluation_set is None:
            raise problem("[evaluation_set]", "no such table", remedy, f"{key}.validation")
        if train.keep == "best" and source == "evaluation_set":
            # The scores of the table would be those of the examples that chose the epoch.
            found = "validation = 'evaluation_set', from which the scores come"
            raise problem("examples besides the evaluation set to choose on", found, remedy, f"{key}.keep")
        for name in ("keep", "validate_every", "best_by"):
            if source is None and getattr(train, name) != type(train).model_fields[name].default:
                expected = "examples to validate on"
                raise problem(expected, missing, remedy, f"{key}.{name}")
        if train.best_by not in (figures if train.held_out is not None else ("accuracy", "nll")):
            expected = "soft targets and validation = SHARE, for rows that have teachers' logits"
            found = "rows held out of a training from labels" if train.held_out is not None else f"[{source}]"
            raise problem(expected, found, "set best_by = 'nll'", f"{key}.best_by")

    def validation_source(self, train: ValidatedTrain) -> str | None:
        """Return what a training is validated on: "held_out", "validation_set", "evaluation_set", or None."""
        if train.held_out is not None:
            return "held_out"
        if train.validation is not None:
            return "evaluation_set"
        return None if self.validation_set is None else "validation_set"

    def _check_member(self, name: str, key: str) -> None:
        """Refuse a name that is not that of one network."""
        members = [member for teacher in self.teachers for member in teacher.member_names]
        if name in members:
            return
        if name in self._groups:
            found, remedy = f"'{name}', which has several members", f"did you mean '{name}-0'?"
        else:
            found, remedy = show(name), suggest(name, members)
        raise problem("the name of one teacher", found, remedy, key)

    def _check_view(self, views: str | int, key: str) -> None:
        if isinstance(views, int) and views >= self.cache.views:
            expected = f"a view below cache.views = {self.cache.views}"
            raise problem(expected, str(views), "raise cache.views, or take a lower view", key)

    def _check_specialists(self, table: Specialists, owners: Mapping[str, str]) -> None:
        """Refuse specialists without a clustering, a generalist or free names."""
        own = None if self.cluster is None else self.cluster.part_name
        if table.clustering is None and own is None:
            expected = "[cluster] or specialists.clustering"
            raise problem(expected, "no such key", "add one of the two", "specialists.clustering")
        if table.generalist is not None:
            self._check_member(table.generalist, "specialists.generalist")
        elif self.cluster is None or self.cluster.teacher is None:
            expected, remedy = "cluster.teacher or specialists.generalist", "add specialists.generalist"
            raise problem(expected, "no such key", remedy, "specialists.generalist")
        self._check_view(table.views, "specialists.views")
        self._check_validation(table.train, "specialists.train", ("accuracy", "nll"))
        most = len(table.sets) if table.sets != "all" else self.cluster.clusters if self.cluster else 0
        if most > MAX_PARTS:
            expected = f"at most {MAX_PARTS:,} specialists, the captures of a store"
            raise problem(
                expected, f"{most:,}", "lower cluster.clusters, or list fewer sets", "specialists.sets"
            )
        known = self.cluster.clusters if self.cluster is not None and own == self.clustering_name else None
        numbers = range(known or 0) if table.sets == "all" else table.sets
        if known is not None and max(numbers) >= known:
            expected = f"sets from 0 to {known - 1}, for cluster.clusters = {known}"
            raise problem(expected, str(max(numbers)), "lower the numbers", "specialists.sets")
        longest = f"{self.specialist_prefix}-{max(numbers, default=0)}"
        if not NAME.fullmatch(longest):
            raise problem("names of 64 characters at most", show(longest), "set name", "specialists.name")
        for number in numbers:
            _claim(dict(owners), f"{self.specialist_prefix}-{number}", "specialists.name")

    def _check_combination(self, table: Combine, owners: dict[str, str]) -> None:
        """Refuse a combination of logits that are not kept, or that has no solution; claim its name."""
        specialists = self.specialists
        found = remedy = None
        if specialists is None:
            found, remedy = "no [specialists]", "add [specialists]"
        elif not specialists.capture:
            found, remedy = "specialists.capture = false", "set specialists.capture = true"
        elif specialists.variant == "full":
            found, remedy = "specialists.variant = 'full'", "set specialists.variant = 'joint'"
        if found is not None:
            expected = "captured specialists with a dustbin class"
            raise problem(expected, found, f"{remedy}, or remove [combine]", "combine")
        own = self.cluster if self.cluster and self.cluster.part_name == self.clustering_name else None
        overlap = own is not None and not own.disjoint
        if table.direction == "qp" and (overlap or table.top != 1):
            # KL(q, p) has a closed form for one active specialist alone.
            found = f"top = {table.top}" if table.top != 1 else "cluster.disjoint = false"
            remedy = "set cluster.disjoint = true and remove top, or set direction = 'pq'"
            raise problem("cluster.disjoint = true and top = 1", found, remedy, "combine.direction")
        prefix, _, number = table.name.rpartition("-")
        if prefix == self.specialist_prefix and number.isdecimal():
            owners = {**owners, table.name: "specialists"}
        _claim(owners, table.name, "combine.name")

    @property
    def clustering_name(self) -> str:
        """The clustering that has the sets of the specialists. Only for an experiment with specialists."""
        name = (self.specialists and self.specialists.clustering) or (self.cluster and self.cluster.part_name)
        assert name
        return name

    @property
    def specialist_prefix(self) -> str:
        """The specialists' common name, before the number of the set. Only for an experiment with specialists."""
        return (self.specialists and self.specialists.name) or self.clustering_name

    @property
    def generalist(self) -> TeacherMember:
        """The teacher that the specialists begin from. Only for an experiment with specialists."""
        name = (self.specialists and self.specialists.generalist) or (self.cluster and self.cluster.teacher)
        return next(member for member in self.teacher_members() if member.name == name)

    def teacher_members(self) -> tuple[TeacherMember, ...]:
        """Return every network to be cached, in order: members of a teacher one by one, seeds counted up."""
        return tuple(
            TeacherMember(
                name,
                teacher.seed + member,
                self._weights(teacher, member),
                teacher,
                self.base,
                self.validation_set,
            )
            for teacher in self.teachers
            for member, name in enumerate(teacher.member_names)
        )

    def _weights(self, teacher: Teacher, member: int) -> Path | None:
        file = None if teacher.in_hand is not None else teacher.weights_file
        return None if file is None else self.base / file.replace("{member}", str(member))

    def teacher_weights(self, student: Student) -> dict[str, float]:
        """Return the ensemble of a student: the weight of each capture, by name; they sum to 1.

        The members of a teacher share its weight equally. Empty for a student with hard targets.
        """
        given = student.teachers or {}
        total = sum(given.values())
        return among_members({name: weight / total for name, weight in given.items()}, self._groups)


def _claim(owners: dict[str, str], name: str, key: str) -> None:
    """Note that the table of `key` has a name. Raises PydanticCustomError where another table has it."""
    if name in owners:
        raise problem("a name of its own", f"'{name}', which {owners[name]} has", "rename one of them", key)
    owners[name] = key.partition(".")[0]


def _check_known(names: Iterable[str], owners: Mapping[str, str], key: str) -> None:
    for name in names:
        if name not in owners:
            raise problem("a teacher's name", show(name), suggest(name, owners), key)


# From a file to an experiment


def load_experiment(path: str | Path) -> Experiment:
    """Read an experiment file; `base` is its folder.

    Raises ConfigError, with the file and the key or line in `where`, for a file that cannot be read, is no
    TOML, or is no experiment.
    """
    path = Path(path)
    where = str(path)
    try:
        text = read_text(path)
        document = parse_toml(text, where)
    except OSError as error:
        raise ConfigError(
            where,
            expected="an experiment file",
            found=(error.strerror or type(error).__name__).lower(),
            remedy="check the path",
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise syntax_error(path, text, error) from error
    return parse_experiment(document, where=where, base=path.parent)


def parse_experiment(document: Mapping[str, object], *, where: str, base: Path) -> Experiment:
    """Check a document that has the form of an experiment file.

    document: tables, lists and scalars as `tomllib` gives them.
    where: the document's name in errors, normally its path.
    base: folder that relative file names start from.
    Raises ConfigError for the first problem; its remedy counts the others, and its notes list them.
    """
    try:
        experiment = Experiment.model_validate(dict(document))
    except ValidationError as error:
        raise explain(error, where, Experiment) from None
    experiment._base = base
    return experiment
