"""Scores of an experiment's models: which there are to be, which were measured, and their table. Imports no torch.

A score belongs to networks (weights, factory, arguments, local code), to an evaluation set, and to the way in which it was
measured. It is kept in `evaluation.json` beside the models, and measured again if one of these changes. The table has a row
for each teacher, ensemble and student (mean and spread over its seeds).
"""

import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import mean, stdev
from types import MappingProxyType
from typing import Any, Final

from ...storage.api import Store
from ...storage.backends.posix import read_plain, replace_file
from ...storage.format.documents import canonical_json, sha256_hex
from ...storage.identity import as_json
from ...storage.sharing.store_card import Score as CardScore
from ..cache.todo import find_teacher, weights_key
from ..cluster.errors_inside import ErrorsInside
from ..evaluation_set import EvaluationExamples
from ..experiment.document import Experiment
from ..experiment.tables import Student
from ..experiment.training import Factory
from ..factories.call import describe_exception
from ..factories.local_code import SOURCE
from ..factories.products import local_code_of
from ..factories.read_files import READ, files_read
from ..models.loaders import stable_name
from ..specialists.todo import can_begin, find_specialists
from ..train.todo import find_student, student_seeds
from ..workspace import Workspace

log = logging.getLogger(__name__)


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
    """Key of its score: the digest of everything that it follows from."""
    members: Mapping[str, float]
    """Of an ensemble, and of sets: the teachers and their shares."""
    mean: str
    """Of an ensemble: "arithmetic" or "geometric"."""
    networks: Mapping[str, str]
    """"sha256:…" of the weights of each network that is run, by teacher, specialist or `run`."""
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


EVALUATION_BATCH: Final = 512
"""Examples that a model is given at a time."""
_MEASURED: Final = {"version": 2, "precision": "float32", "batch_size": EVALUATION_BATCH}
"""How a score is measured. Raise the version when a metric gives other numbers."""


def subjects(work: Workspace, examples: EvaluationExamples) -> Iterator[Subject]:
    """Yield every model that is there and can be scored, in the order of the table. examples: the evaluation set."""
    experiment = work.experiment
    shown = [examples.content, len(examples), examples.class_names, work.rows.class_names]

    def subject(
        kind: str,
        name: str,
        networks: Mapping[str, "_Network"],
        *,
        run: str = "",
        members: Mapping[str, float] = MappingProxyType({}),
        mean: str = "",
        made_of: Mapping[str, Any] = MappingProxyType({}),
    ) -> Subject:
        known = [[one.identity for one in networks.values()], dict(members), mean, dict(made_of)]
        key = sha256_hex(canonical_json(as_json({"model": known, "shown": shown, "measured": _MEASURED})))
        weights = {n: network.weights for n, network in networks.items()}
        return Subject(kind, name, key, members, mean, weights, run)

    teachers = {
        member.name: _Network.of(
            record.weights,
            member.teacher,
            member.source,
            **_read(member.files_read),
            **weights_key(member),
            class_names=member.teacher.check_class_names,
        )
        for member in experiment.teacher_members()
        if (record := find_teacher(work, member)) is not None
    }
    for name, network in teachers.items():
        yield subject("teacher", name, {name: network})
    for members, kind in ensembles(experiment):
        if teachers.keys() >= members.keys():
            networks = {name: teachers[name] for name in members}
            yield subject("ensemble", ensemble_name(members, kind), networks, members=members, mean=kind)
    table = experiment.combine
    if table is not None and (networks := _combined_networks(work, teachers)):
        settings = {"top": table.top, "direction": table.direction}
        yield subject("combination", table.name, networks, made_of=settings)
    for run in student_seeds(experiment):
        if (student := find_student(work, run)) is not None:
            source = local_code_of([run.student], base=experiment.base)
            files = files_read([run.student], base=experiment.base)
            made = {key: student.identity[key] for key in ("files",) if key in student.identity}
            network = _Network.of(student.weights, run.student, source, **_read(files), **made)
            yield subject("student", run.student.name, {run.name: network}, run=run.name)
    cluster = experiment.cluster
    if cluster is not None and teachers.keys() >= cluster.shares.keys():
        part = f"clusters/{cluster.part_name}"
        if work.store.is_sealed(part):
            networks = {name: teachers[name] for name in cluster.shares}
            sets = {"sets": work.store.digest_of(part), "disjoint": cluster.disjoint, "seed": cluster.seed}
            yield subject("sets", cluster.part_name, networks, members=cluster.shares, made_of=sets)


@dataclass(frozen=True)
class _Network:
    """A network that is run for a score."""

    weights: str
    """"sha256:…" of its weights."""
    identity: Mapping[str, Any]
    """Everything that its logits follow from."""

    @classmethod
    def of(cls, weights: str, table: Factory, source: Mapping[str, str], **more: Any) -> "_Network":
        """Return the network that a table of the experiment makes."""
        made_by = {"factory": stable_name(table.factory), "args": table.args, SOURCE: source, **more}
        return cls(weights, {"weights": weights, **made_by})


def _read(files: Mapping[str, str]) -> dict[str, Mapping[str, str]]:
    """Return the files that a network reads as part of its identity; nothing where it reads none."""
    return {READ: files} if files else {}


def _combined_networks(work: Workspace, teachers: Mapping[str, _Network]) -> dict[str, _Network]:
    """Return generalist and specialists by name; none if one is not trained."""
    if not can_begin(work):
        return {}
    name, networks = work.experiment.generalist.name, dict[str, _Network]()
    for run, record in find_specialists(work).items():
        if name not in teachers or record is None:
            return {}
        networks[run.name] = _Network(
            record.weights, {"weights": record.weights, "of": dict(record.identity)}
        )
    return {name: teachers[name], **networks}


def ensembles(experiment: Experiment) -> list[tuple[dict[str, float], str]]:
    """List the distinct ensembles of more than one teacher that students learn from: (shares, mean)."""
    distinct: list[tuple[dict[str, float], str]] = []
    for student in experiment.students:
        entry = (experiment.teacher_weights(student), str(student.mean))
        if len(entry[0]) > 1 and entry not in distinct:
            distinct.append(entry)
    return distinct


def ensemble_name(members: Mapping[str, float], kind: str) -> str:
    """Name an ensemble in the table, with its shares where they differ.

    >>> ensemble_name({"wide": 0.5, "deep": 0.5}, "arithmetic")
    'wide + deep, arithmetic mean'
    >>> ensemble_name({"wide": 0.25, "deep": 0.75}, "arithmetic")
    'wide + 3 deep, arithmetic mean'
    """
    least = min(members.values())
    shares = {name: f"{share / least:.6g}" for name, share in members.items()}
    named = [name if share == "1" else f"{share} {name}" for name, share in shares.items()]
    return f"{' + '.join(named)}, {kind} mean"


class Scores:
    """Measured scores, in a file."""

    def __init__(self, path: Path) -> None:
        """Read the file. A score that cannot be read is said, and measured again."""
        self.path = path
        """The file."""
        self._scores: dict[str, Score | ErrorsInside] = {}
        try:
            content = json.loads(read_plain(path))
            entries = content.items()
        except FileNotFoundError:
            return
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            log.warning("%s: no scores (%s); they are measured again", path, describe_exception(error)[:200])
            return
        for key, value in entries:
            if (score := _parsed(value)) is not None:
                self._scores[key] = score
        if wrong := len(entries) - len(self._scores):
            log.warning(
                "%s: %d of %d entries are no scores; they are measured again", path, wrong, len(entries)
            )

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


def _parsed(value: Any) -> Score | ErrorsInside | None:
    """Return the score that an entry of the file holds; None for one of another form, or with impossible numbers."""
    if not isinstance(value, Mapping):
        return None
    kind = ErrorsInside if "inside" in value else Score
    optional = {"random_deviation", "draws"}
    wanted = {field.name: field.type for field in fields(kind)}
    if not wanted.keys() - optional <= value.keys() <= wanted.keys():
        return None
    for name, number in value.items():
        is_whole = isinstance(number, int) and not isinstance(number, bool)
        if not is_whole and (wanted[name] is int or not isinstance(number, float)):
            return None
        if not 0 <= number < math.inf or number > _LARGEST:
            return None
    counted, of = ("inside", "errors") if kind is ErrorsInside else ("errors", "examples")
    return None if value[counted] > value[of] or value.get("examples") == 0 else kind(**value)


_LARGEST: Final = 1 << 63
"""Above every count."""


def scores_of_captures(store: Store, found: Iterable[Subject], scores: Scores) -> dict[str, CardScore]:
    """Return the scores of the teachers whose captures are in a store, of the same weights, for its card."""
    figures = {}
    for subject in found:
        score = scores.get(subject)
        if subject.kind != "teacher" or not isinstance(score, Score):
            continue
        identity = store.identity_of(f"teachers/{subject.name}") or {}
        teacher = identity.get("teacher")
        if isinstance(teacher, Mapping) and teacher.get("weights") == subject.networks[subject.name]:
            right = 1 - score.errors / score.examples
            figures[subject.name] = CardScore(score.examples, right, score.nll, score.calibration_error)
    return figures


def table(found: Sequence[Subject], scores: Scores) -> list[TableRow]:
    """Gather all scores into a table, the seeds of a student in one row."""
    rows: dict[tuple[str, str, str], list[Score]] = {}
    for subject in found:
        score = scores.get(subject)
        if isinstance(score, Score):
            of = "" if subject.kind == "student" else subject.key
            rows.setdefault((subject.kind, subject.name, of), []).append(score)
    return [TableRow(kind, name, tuple(values)) for (kind, name, _), values in rows.items()]


def errors_in_sets(found: Sequence[Subject], scores: Scores) -> ErrorsInside | None:
    """Return how many errors on the evaluation set the sets hold; None if nothing was clustered or scored."""
    for subject in found:
        score = scores.get(subject)
        if isinstance(score, ErrorsInside):
            return score
    return None


def verdicts(experiment: Experiment, rows: Sequence[TableRow]) -> list[str]:
    """Compare each distilled student with the same one on hard labels: a sentence each.

    Two students are compared if they were trained alike: same rows, views and seeds, and the same settings of the training
    but for those of their targets (`label_smoothing`).
    """
    return [
        _verdict(ours, theirs)
        for twins in _twins(experiment, rows)
        for ours, theirs, differences in twins
        if not differences
    ]


def uncompared(experiment: Experiment, rows: Sequence[TableRow]) -> list[str]:
    """Explain why a distilled student has no verdict: a sentence for each one whose counterparts were trained otherwise."""
    return [
        f"{ours.name} and {theirs.name} are not compared: {differences}."
        for twins in _twins(experiment, rows)
        if all(differences for _, _, differences in twins)
        for ours, theirs, differences in twins
    ]


def _twins(
    experiment: Experiment, rows: Sequence[TableRow]
) -> Iterator[list[tuple[TableRow, TableRow, str]]]:
    """Yield each distilled student beside its counterparts on hard labels, and the differences of their trainings."""
    students = {row.name: row for row in rows if row.kind == "student"}
    scored = [student for student in experiment.students if student.name in students]
    for soft in scored:
        yield [
            (ours, theirs, _differences(soft, hard, ours, theirs))
            for hard in scored
            if _are_twins(soft, hard)
            for ours, theirs in [(students[soft.name], students[hard.name])]
        ]


_UNCOMPARED: Final = {"label_smoothing", "checkpoint_every", "compile"}
"""Settings of a training that belong to hard targets alone, or from which no other weights follow."""


def _are_twins(soft: Student, hard: Student) -> bool:
    """Return whether two students are the same network, the first on soft targets and the second on hard ones."""
    same = soft.network_keys == hard.network_keys
    return soft.targets == "soft" and hard.targets == "hard" and same


def _differences(soft: Student, hard: Student, ours: TableRow, theirs: TableRow) -> str:
    """List the settings in which two trainings differ, with both values; empty for equal ones."""
    pairs = {key: (getattr(soft, key), getattr(hard, key)) for key in ("rows", "views")}
    one, other = (student.train.model_dump(mode="json", exclude=_UNCOMPARED) for student in (soft, hard))
    pairs |= {f"train.{key}": (one[key], other[key]) for key in one}
    if soft.train.seeds == hard.train.seeds:
        pairs["seeds trained"] = (len(ours.scores), len(theirs.scores))
    unequal = [f"{key} ({mine} and {its})" for key, (mine, its) in pairs.items() if mine != its]
    return f"they differ in {', '.join(unequal)}" if unequal else ""


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
