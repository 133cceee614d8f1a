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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, PrivateAttr, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from ...storage.errors import ConfigError
from .schema import Table, explain, list_as_tuple, nearest, problem, show
from .tables import (
    Cache,
    Cluster,
    Combine,
    EvaluationSet,
    Specialists,
    SpecialistTrain,
    Student,
    Teacher,
    TransferSet,
    ViewAugmentation,
    check_specialist_names,
)
from .training import Augmentation, Factory, Loss, StudentTrain, TeacherTrain, Train

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
