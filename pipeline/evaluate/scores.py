"""Scores of an experiment's models: which there are to be, which were measured, and their table. Imports no torch.

A score belongs to weights and to an evaluation set. It is kept in `evaluation.json` beside the models, and measured again
if one of the two changes. The table has a row for each teacher, ensemble and student (mean and spread over its seeds).
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from types import MappingProxyType

from ...storage.backends.posix import read_plain, replace_file
from ...storage.format.documents import sha256_hex
from ...storage.identity import as_json
from ..cache.todo import find_teacher
from ..cluster.errors_inside import ErrorsInside
from ..experiment.document import Experiment
from ..experiment.tables import Combine, Student
from ..models.records import Record
from ..specialists.todo import can_begin, find_specialists
from ..train.todo import find_student, student_seeds
from ..transfer import Examples
from ..workspace import Workspace


@dataclass(frozen=True)
class Score:
    """One model on the evaluation set."""

    examples: int
    """Labelled examples."""
    errors: int
    """Examples whose most probable class is not the label."""
    nll: float
    """Mean negative log-likelihood of the labels, nats."""
    calibration_error: float
    """Expected calibration error, from 0 to 1."""
    parameters: int
    """Trained numbers of the model; of an ensemble, of all its members."""


@dataclass(frozen=True)
class Subject:
    """A model that is scored."""

    kind: str
    """"teacher", "ensemble", "combination", "student" or, of a clustering, "sets"."""
    name: str
    """Name in the table, or of the clustering."""
    key: str
    """Key of its score, which changes with weights and evaluation set."""
    members: Mapping[str, float]
    """Of an ensemble, and of sets: the teachers and their shares."""
    mean: str
    """Of an ensemble: "arithmetic" or "geometric"."""
    weights: str
    """"sha256:…" of the weights; of an ensemble, of all of them; of sets, the digest of their clustering."""
    run: str
    """Of a student: name of its files."""


@dataclass(frozen=True)
class TableRow:
    """One line of the table."""

    kind: str
    """"teacher", "ensemble", "combination" or "student"."""
    name: str
    """Its name in the experiment."""
    scores: Sequence[Score]
    """One a seed; one in all for teachers and ensembles."""

    def average(self, field: str) -> float:
        """Average a field of `Score`, or "accuracy", over seeds."""
        return mean(self._values(field))

    def spread(self, field: str) -> float:
        """Return the standard deviation over seeds (n - 1); NaN for a single one."""
        values = self._values(field)
        return stdev(values) if len(values) > 1 else math.nan

    def _values(self, field: str) -> list[float]:
        if field == "accuracy":
            return [1 - score.errors / score.examples for score in self.scores]
        return [float(getattr(score, field)) for score in self.scores]


def subjects(work: Workspace, examples: Examples) -> Iterator[Subject]:
    """Yield every model that is there and can be scored, in the order of the table. examples: the evaluation set."""
    experiment, content = work.experiment, examples.content

    def subject(
        kind: str,
        name: str,
        weights: str,
        *,
        run: str = "",
        members: Mapping[str, float] = MappingProxyType({}),
        mean: str = "",
    ) -> Subject:
        known_by = json.dumps([weights, dict(members), mean, content, len(examples)], sort_keys=True)
        return Subject(kind, name, sha256_hex(known_by.encode()), members, mean, weights, run)

    records = {
        member.name: record
        for member in experiment.teacher_members()
        if (record := find_teacher(work, member)) is not None
    }
    for name, record in records.items():
        yield subject("teacher", name, record.weights)
    for members, kind in ensembles(experiment):
        if records.keys() >= members.keys():
            together = sha256_hex("".join(records[name].weights for name in members).encode())
            name = ensemble_name(members, kind)
            yield subject("ensemble", name, f"sha256:{together}", members=members, mean=kind)
    table = experiment.combine
    if table is not None and (combined := _combination_weights(work, table, records)) is not None:
        yield subject("combination", table.name, combined)
    for run in student_seeds(experiment):
        if (student := find_student(work, run)) is not None:
            yield subject("student", run.student.name, student.weights, run=run.name)
    cluster = experiment.cluster
    if cluster is not None and records.keys() >= cluster.shares.keys():
        part = f"clusters/{cluster.part_name}"
        if work.store.is_sealed(part):
            yield subject("sets", cluster.part_name, work.store.digest_of(part), members=cluster.shares)


def _combination_weights(work: Workspace, table: Combine, teachers: Mapping[str, Record]) -> str | None:
    """Return "sha256:…" of all that generalist and specialists together follow from; None if one is not trained."""
    if not can_begin(work):
        return None
    name, specialists = work.experiment.generalist.name, find_specialists(work)
    records = [record for record in specialists.values() if record is not None]
    if name not in teachers or len(records) < len(specialists):
        return None
    made_of = {
        "generalist": teachers[name].weights,
        "specialists": [[record.weights, dict(record.identity)] for record in records],
        "top": table.top,
        "direction": table.direction,
    }
    return f"sha256:{sha256_hex(json.dumps(made_of, sort_keys=True).encode())}"


def ensembles(experiment: Experiment) -> list[tuple[dict[str, float], str]]:
    """List the distinct ensembles of more than one teacher that students learn from: (shares, mean)."""
    distinct: list[tuple[dict[str, float], str]] = []
    for student in experiment.students:
        entry = (experiment.teacher_weights(student), str(student.mean))
        if len(entry[0]) > 1 and entry not in distinct:
            distinct.append(entry)
    return distinct


def ensemble_name(members: Mapping[str, float], kind: str) -> str:
    """Name an ensemble in the table.

    >>> ensemble_name({"wide": 0.5, "deep": 0.5}, "arithmetic")
    'wide + deep, arithmetic mean'
    """
    return f"{' + '.join(members)}, {kind} mean"


class Scores:
    """Measured scores, in a file."""

    def __init__(self, path: Path) -> None:
        """Read the file; one that does not parse counts as empty."""
        self.path = path
        """The file."""
        self._scores: dict[str, Score | ErrorsInside] = {}
        try:
            for key, value in json.loads(read_plain(path)).items():
                if not all(
                    type(number) in (int, float) and math.isfinite(number) for number in value.values()
                ):
                    raise TypeError("a score that is no number")
                self._scores[key] = ErrorsInside(**value) if "inside" in value else Score(**value)
        except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            self._scores = {}

    def missing(self, found: Iterable[Subject]) -> list[Subject]:
        """Return the subjects without a score."""
        return [subject for subject in found if self.get(subject) is None]

    def get(self, subject: Subject) -> Score | ErrorsInside | None:
        """Return the score of a subject; None if it is to be measured."""
        return self._scores.get(subject.key)

    def put(self, subject: Subject, score: Score | ErrorsInside) -> None:
        """Put a score into the file."""
        self._scores[subject.key] = score
        # Without any error no spread is known: JSON has no NaN, and the field's default is just that.
        content = {
            key: {name: number for name, number in vars(value).items() if not math.isnan(number)}
            for key, value in self._scores.items()
        }
        replace_file(self.path, json.dumps(as_json(content), indent=1).encode() + b"\n")


def table(found: Sequence[Subject], scores: Scores) -> list[TableRow]:
    """Gather all scores into a table, the seeds of a student in one row."""
    rows: dict[tuple[str, str], list[Score]] = {}
    for subject in found:
        score = scores.get(subject)
        if isinstance(score, Score):
            rows.setdefault((subject.kind, subject.name), []).append(score)
    return [TableRow(kind, name, tuple(values)) for (kind, name), values in rows.items()]


def errors_in_sets(found: Sequence[Subject], scores: Scores) -> ErrorsInside | None:
    """Return how many errors on the evaluation set the sets hold; None if nothing was clustered or scored."""
    for subject in found:
        score = scores.get(subject)
        if isinstance(score, ErrorsInside):
            return score
    return None


def verdicts(experiment: Experiment, rows: Sequence[TableRow]) -> list[str]:
    """Compare each distilled student with the same one on hard labels, of the same rows and views: a sentence each."""
    students = {row.name: row for row in rows if row.kind == "student"}
    sentences = []
    for soft in experiment.students:
        for hard in experiment.students:
            if _comparable(soft, hard) and soft.name in students and hard.name in students:
                sentences.append(_verdict(students[soft.name], students[hard.name]))
    return sentences


def _comparable(soft: Student, hard: Student) -> bool:
    same = all(getattr(soft, key) == getattr(hard, key) for key in ("factory", "args", "rows", "views"))
    return soft.targets == "soft" and hard.targets == "hard" and same


def _verdict(soft: TableRow, hard: TableRow) -> str:
    ours, theirs = soft.average("errors"), hard.average("errors")
    seeds = f"{len(soft.scores)} and {len(hard.scores)} seeds"
    error = math.sqrt(sum(row.spread("errors") ** 2 / len(row.scores) for row in (soft, hard)))
    claim = "is better than" if ours < theirs else "is not better than"
    if 0 < theirs - ours <= 2 * error:  # a smaller difference comes about by chance as well
        claim = "is not clearly better than"
    spread = f", a difference of {abs(theirs - ours):.1f} ± {error:.1f} (standard error)"
    if math.isnan(error):
        spread = "; with a single seed of one of them this may be chance"
    return f"{soft.name} {claim} {hard.name}: {ours:.1f} errors against {theirs:.1f} in the mean ({seeds}){spread}."
