"""How good is every model of an experiment, as far as it has been measured?

A score belongs to weights and to an evaluation set; it is kept in `evaluation.json` beside the models, and
measured again only when one of the two changes. `table` puts scores together: a row a teacher, an ensemble, a
student (mean and spread over its seeds). Needs no torch.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from types import MappingProxyType

from ...storage.api import Store
from ...storage.backends.posix import replace_file
from ...storage.format.documents import sha256_hex
from ...storage.identity import as_json
from ..cache.todo import find_teacher
from ..cluster.errors_inside import ErrorsInside
from ..experiment.document import Experiment
from ..experiment.tables import Student
from ..models.records import Models, Record
from ..specialists.todo import find_specialist, specialist_runs
from ..train.todo import student_identity, student_seeds
from ..transfer import Examples, TransferRows


@dataclass(frozen=True)
class Score:
    """One model on the evaluation set."""

    examples: int
    """Labelled examples."""
    errors: int
    """Those whose most probable class is not the label."""
    nll: float
    """Mean negative log-likelihood of the labels, nats."""
    calibration_error: float
    """Expected calibration error, from 0 to 1."""
    parameters: int
    """Numbers that the model learnt; of an ensemble, of all its members."""


@dataclass(frozen=True)
class Subject:
    """Something that is scored."""

    kind: str
    """"teacher", "ensemble", "combination", "student" or, of a clustering, "sets"."""
    name: str
    """Name in the table, or of the clustering."""
    key: str
    """Name of its score: the same for as long as neither weights nor evaluation set change."""
    members: Mapping[str, float]
    """For an ensemble, and for sets: the teachers and their shares."""
    mean: str
    """For an ensemble: "arithmetic" or "geometric"."""
    weights: str
    """"sha256:…" of the weights; of an ensemble, of all of them; of sets, the digest of their clustering."""
    run: str
    """For a student: name of its files."""


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
        """Mean over seeds of a field of `Score`, or of "accuracy"."""
        return mean(self._values(field))

    def spread(self, field: str) -> float:
        """Standard deviation over seeds (n - 1); NaN for a single one."""
        values = self._values(field)
        return stdev(values) if len(values) > 1 else math.nan

    def _values(self, field: str) -> list[float]:
        if field == "accuracy":
            return [1 - score.errors / score.examples for score in self.scores]
        return [float(getattr(score, field)) for score in self.scores]


def subjects(
    experiment: Experiment, rows: TransferRows, models: Models, store: Store, evaluation: Examples
) -> Iterator[Subject]:
    """Everything that is there and can be scored, in the order of the table."""
    content = evaluation.content

    def subject(
        kind: str,
        name: str,
        weights: str,
        *,
        run: str = "",
        members: Mapping[str, float] = MappingProxyType({}),
        mean: str = "",
    ) -> Subject:
        known_by = json.dumps([weights, dict(members), mean, content, len(evaluation)], sort_keys=True)
        return Subject(kind, name, sha256_hex(known_by.encode()), members, mean, weights, run)

    records = {m.name: find_teacher(experiment, m, rows, models) for m in experiment.teacher_members()}
    for name, record in records.items():
        if record is not None:
            yield subject("teacher", name, record.weights)
    for members, kind in ensembles(experiment):
        found = [records.get(name) for name in members]
        if all(record is not None for record in found):
            together = sha256_hex("".join(r.weights for r in found if r is not None).encode())
            name = ensemble_name(members, kind)
            yield subject("ensemble", name, f"sha256:{together}", members=members, mean=kind)
    combined = _combination_weights(experiment, records, models, store)
    if combined is not None and experiment.combine is not None:
        yield subject("combination", experiment.combine.name, combined)
    for run in student_seeds(experiment):
        identity = student_identity(experiment, run, store)
        student = models.find("students", run.name, identity)
        if student is not None:
            yield subject("student", run.student.name, student.weights, run=run.name)
    cluster = experiment.cluster
    if (
        cluster is not None
        and cluster.part_name in store.clusterings
        and all(records.get(name) is not None for name in cluster.shares)
    ):
        made = store.clustering(cluster.part_name).digest
        yield subject("sets", cluster.part_name, made, members=cluster.shares)


def _combination_weights(
    experiment: Experiment, records: Mapping[str, Record | None], models: Models, store: Store
) -> str | None:
    """ "sha256:…" of all that the combination of generalist and specialists follows from; None where that is not there."""
    if experiment.combine is None or experiment.specialists is None:
        return None
    if (
        experiment.generalist.name not in store.teachers
        or experiment.clustering_name not in store.clusterings
    ):
        return None
    generalist = records[experiment.generalist.name]
    found = [
        find_specialist(experiment, run, store, models, generalist)
        for run in specialist_runs(experiment, store)
    ]
    if generalist is None or any(record is None for record in found):
        return None
    made_of = {
        "generalist": generalist.weights,
        "specialists": [[record.weights, dict(record.identity)] for record in found if record is not None],
        "top": experiment.combine.top,
        "direction": experiment.combine.direction,
    }
    return f"sha256:{sha256_hex(json.dumps(made_of, sort_keys=True).encode())}"


def ensembles(experiment: Experiment) -> list[tuple[dict[str, float], str]]:
    """The distinct ensembles of more than one teacher that students learn from: (shares, mean)."""
    found: list[tuple[dict[str, float], str]] = []
    for student in experiment.students:
        entry = (experiment.teacher_weights(student), str(student.mean))
        if len(entry[0]) > 1 and entry not in found:
            found.append(entry)
    return found


def ensemble_name(members: Mapping[str, float], kind: str) -> str:
    """How an ensemble is called in the table.

    >>> ensemble_name({"wide": 0.5, "deep": 0.5}, "arithmetic")
    'wide + deep, arithmetic mean'
    """
    return f"{' + '.join(members)}, {kind} mean"


class Scores:
    """The scores that were measured, in a file."""

    def __init__(self, path: Path) -> None:
        """Read what is there; a file that does not parse counts as none."""
        self.path = path
        """Where they are kept."""
        self._scores: dict[str, Score | ErrorsInside] = {}
        try:
            for key, value in json.loads(path.read_bytes()).items():
                self._scores[key] = ErrorsInside(**value) if "inside" in value else Score(**value)
        except (OSError, ValueError, TypeError, AttributeError):
            self._scores = {}

    def get(self, subject: Subject) -> Score | ErrorsInside | None:
        """The score of a subject; None where it is to be measured."""
        return self._scores.get(subject.key)

    def put(self, subject: Subject, score: Score | ErrorsInside) -> None:
        """Keep a score."""
        self._scores[subject.key] = score
        # Without any error no spread is known: JSON has no NaN, and the field's default is just that.
        content = {
            key: {name: number for name, number in vars(value).items() if not math.isnan(number)}
            for key, value in self._scores.items()
        }
        replace_file(self.path, json.dumps(as_json(content), indent=1).encode() + b"\n")


def table(found: Sequence[Subject], scores: Scores) -> list[TableRow]:
    """The table of everything that has a score, students put together over their seeds."""
    rows: dict[tuple[str, str], list[Score]] = {}
    for subject in found:
        score = scores.get(subject)
        if isinstance(score, Score):
            rows.setdefault((subject.kind, subject.name), []).append(score)
    return [TableRow(kind, name, tuple(values)) for (kind, name), values in rows.items()]


def errors_in_sets(found: Sequence[Subject], scores: Scores) -> ErrorsInside | None:
    """Return how many errors on the evaluation set the sets hold; None where nothing was clustered or scored."""
    for subject in found:
        score = scores.get(subject)
        if isinstance(score, ErrorsInside):
            return score
    return None


def verdicts(experiment: Experiment, rows: Sequence[TableRow]) -> list[str]:
    """Return a sentence for each distilled student: is it better than the same one on hard labels?

    Only students of the same share of rows and of the same views are compared.
    """
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
