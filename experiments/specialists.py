"""Specialists on Omniglot, and a net that is distilled from them.

The experiment is Hinton, Vinyals & Dean 2015, section 5, on 964 characters, and the step that the paper
announces. For each seed:

1. `run`: a convnet generalist, and its logits over the training drawings and shifted views of them. The
   clusters of their covariance, a specialist for each cluster, and their combination as one more teacher.
   Three students of the generalist's own form: from the labels, from the generalist, from the combination.
2. `test`: a second store, of the five test drawers: every net's logits on them, combined in the same way.
3. `measure`: the paper's tables from that store; the clusters against the alphabets, which no stage gets.

    python experiments/specialists.py --quick                 every stage in two minutes; its figures mean nothing
    python experiments/specialists.py --jobs 2                three seeds, some hours on two cores
    python experiments/specialists.py --held-out --seeds 90   the same, tested on training drawers that are held out
    python experiments/specialists.py --tables                the tables of finished parts (of a quick run: --quick --tables)

Finished work is not repeated, in whatever stage it was interrupted: start it again with the same arguments.
The zip is looked for in ../shared/data beside the checkout, or in the folder that LOGITSTORE_DATA names.
"""

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from omniglot import SIZE, TEST_DRAWERS, TRAIN_DRAWERS, ZIP, alphabets_of
from specialist_figures import (
    RANDOM_DRAWS,
    agreement_by_chance,
    agreement_with,
    confusion_between,
    random_sets,
    share_inside,
    tables,
)

from logitstore.cli.printing.progress import show_progress
from logitstore.pipeline.cluster.sets import confusable_sets
from logitstore.pipeline.cluster.stage import cluster_store
from logitstore.pipeline.evaluate.captures import Comparison, comparisons, evaluate_captures
from logitstore.pipeline.experiment.document import Experiment, parse_experiment
from logitstore.pipeline.experiment.tables import Cluster
from logitstore.pipeline.models.records import Models
from logitstore.storage.api import Store, open_store
from logitstore.storage.backends.posix import replace_file
from logitstore.storage.parts.reader import sets_of
from logitstore.storage.progress import Progress

FOLDER: Final = Path(__file__).resolve().parent
STUDENTS: Final = ("from-labels", "from-generalist", "from-combined")
CHECKPOINT_EVERY: Final = 1000
"""Steps of a student between two checkpoints, a minute or less."""
EXPERT, HEADED = "expert", "headed"
"""Names of the specialists: the experiment's own, and those with a new head, as in the paper."""
VARIANTS: Final = {
    "combined, n = 3": (EXPERT, 3),
    "combined, n = 5": (EXPERT, 5),
    "combined, specialists with a new head": (HEADED, 1),
}
"""Other combinations (specialists, n), on test drawers alone; KL(q, p) has no closed form if sets overlap."""


@dataclass(frozen=True)
class Settings:
    """The choices of the experiment."""

    alphabets: tuple[str, ...] | None = None
    """The alphabets to use; all when None."""
    train_drawers: tuple[int, ...] = TRAIN_DRAWERS
    test_drawers: tuple[int, ...] = TEST_DRAWERS
    channels: tuple[int, ...] = (16, 32, 64)
    hidden: int = 256
    dropout: float = 0.3
    epochs: int = 50
    """Epochs of the generalist and of the students."""
    lr: float = 1e-3
    batch_size: int = 128
    shift: int = 2
    """Pixels by which drawings are shifted, in training and in the views."""
    views: int = 8
    clusters: int = 24
    classes_per_cluster: int = 50
    """24 sets of 50 of 964 classes: 1.24 a class, where the paper's 61 of 300 of 15,000 are 1.22."""
    cluster_temperature: float = 4.0
    """The generalist is nearly sure of its training drawings: T = 1 shows next to nothing."""
    other_temperatures: tuple[float, ...] = (1.0, 2.0, 8.0)
    """Further temperatures of clusters, compared with the alphabets alone."""
    specialist_epochs: int = 30
    specialist_lr: float = 3e-4
    temperature: float = 2.0
    """Temperature of the distillation."""
    hard_weight: float = 1.0


QUICK: Final = Settings(
    alphabets=("Braille", "Greek", "Korean", "Latin"),
    channels=(8, 16),
    hidden=64,
    epochs=15,
    lr=3e-3,
    views=2,
    clusters=6,
    classes_per_cluster=25,
    other_temperatures=(1.0,),
    specialist_epochs=5,
)


HELD_OUT: Final = (2, 10, 18)
"""Training drawers to test on while something is chosen."""
LOOK: Final = Settings(
    train_drawers=tuple(drawer for drawer in TRAIN_DRAWERS if drawer not in HELD_OUT), test_drawers=HELD_OUT
)


@dataclass(frozen=True)
class Part:
    """A part of the experiment of about an hour, after which results are written."""

    students: tuple[str, ...] = STUDENTS
    """Nets that are trained from the labels and from the store."""
    variants: tuple[str, ...] = tuple(VARIANTS)
    """Other combinations to try."""


PLAIN: Final = tuple(name for name, (specialists, _) in VARIANTS.items() if specialists == EXPERT)
PARTS: Final = (Part((), PLAIN), Part(STUDENTS, PLAIN), Part())


def document(
    settings: Settings, seed: int, data: Path, specialists: str = EXPERT, students: tuple[str, ...] = STUDENTS
) -> dict[str, Any]:
    """Return the experiment file of one seed, as `tomllib` would parse it.

    specialists: EXPERT or HEADED.
    """
    net = {
        "factory": "logitstore.pipeline.models:convnet",
        "args": {
            "channels": list(settings.channels),
            "hidden": [settings.hidden],
            "dropout": settings.dropout,
        },
    }
    augment = {"factory": "logitstore.pipeline.augment:shift", "args": {"pixels": settings.shift}}
    train = {
        "optimizer": "adam",
        "schedule": "cosine",
        "lr": settings.lr,
        "epochs": settings.epochs,
        "batch_size": settings.batch_size,
    }
    learners: dict[str, dict[str, Any]] = {
        "from-labels": {"targets": "hard"},
        **{
            f"from-{teacher}": {
                "teachers": {teacher: 1.0},
                "temperature": settings.temperature,
                "hard_weight": settings.hard_weight,
            }
            for teacher in ("generalist", "combined")
        },
    }
    return {
        "transfer_set": drawings(settings, settings.train_drawers, data),
        "evaluation_set": drawings(settings, settings.test_drawers, data),
        "teacher": [{"name": "generalist", **net, "seed": seed, "train": {**train, "augment": augment}}],
        "cache": {"views": settings.views, "augment": augment},
        "cluster": {
            "name": "covariance",
            "teacher": "generalist",
            "clusters": settings.clusters,
            "classes_per_cluster": settings.classes_per_cluster,
            "temperature": settings.cluster_temperature,
            "seed": seed,
        },
        "specialists": {
            "name": specialists,
            "variant": {EXPERT: "joint", HEADED: "dustbin"}[specialists],
            "seed": 1000 * (seed + 1),
            "train": {**train, "lr": settings.specialist_lr, "epochs": settings.specialist_epochs},
        },
        "combine": {"name": "combined"},
        "student": [
            {
                "name": name,
                **net,
                **learners[name],
                "train": {**train, "seeds": [100 + seed], "checkpoint_every": CHECKPOINT_EVERY},
            }
            for name in students
        ],
    }


def clusterings(settings: Settings) -> dict[str, dict[str, Any]]:
    """Return the clusterings to compare with the alphabets, as changes to the specialists' clustering."""
    chosen = settings.cluster_temperature
    found: dict[str, dict[str, Any]] = {f"covariance, T = {chosen:g}": {}}
    for other in settings.other_temperatures:
        changes = {"temperature": other, "name": f"covariance-t{other:g}"}
        found[f"covariance, T = {other:g}"] = changes
    found[f"correlation, T = {chosen:g}"] = {"normalise": True, "name": "correlation"}
    found[f"covariance, T = {chosen:g}, MiniBatchKMeans"] = {"method": "minibatch", "name": "minibatch"}
    return found


def drawings(settings: Settings, drawers: tuple[int, ...], data: Path) -> dict[str, Any]:
    """Return the table of a data set."""
    some = {} if settings.alphabets is None else {"alphabets": list(settings.alphabets)}
    args = {"root": str(data), "drawers": list(drawers), "size": SIZE, **some}
    return {"factory": "omniglot:characters", "args": args}


def test_document(
    settings: Settings, seed: int, data: Path, models: Models, students: tuple[str, ...]
) -> dict[str, Any]:
    """Return the experiment that runs the trained generalist and students over the test drawers."""
    whole = document(settings, seed, data)
    files = {"generalist": models.weights_path("teachers", "generalist")}
    files |= {name: models.weights_path("students", f"{name}-seed{100 + seed}") for name in students}
    net = {key: whole["teacher"][0][key] for key in ("factory", "args")}
    return {
        "transfer_set": {**whole["evaluation_set"], "order": "as_is"},
        "teacher": [{"name": name, **net, "weights": str(file.resolve())} for name, file in files.items()],
    }


def parsed(content: dict[str, Any], name: str) -> Experiment:
    """Parse the experiment of a document; relative names begin at this folder."""
    return parse_experiment(content, where=name, base=FOLDER)


@dataclass(frozen=True)
class Seed:
    """One seed, and the folder of its results."""

    settings: Settings
    number: int
    data: Path
    folder: Path

    @property
    def models(self) -> Models:
        """The trained nets."""
        return Models(self.folder / "models")

    @property
    def results(self) -> Path:
        """The file of the measured figures."""
        return self.folder / "results.json"

    def experiment(self, specialists: str = EXPERT, students: tuple[str, ...] = STUDENTS) -> Experiment:
        """Return stages one to three as an experiment."""
        content = document(self.settings, self.number, self.data, specialists, students)
        return parsed(content, f"specialists, seed {self.number}")

    def do(self, progress: Progress) -> None:
        """Do everything that is not finished."""
        from logitstore.pipeline.run import run

        for part in PARTS:
            run(self.experiment(students=part.students), self.folder, progress=progress)
            home, test = open_store(self.folder / "store.zarr"), self._test(part, progress)
            found = self._measured(part, home, test, progress)
            replace_file(self.results, json.dumps(found, indent=1).encode() + b"\n")

    def _test(self, part: Part, progress: Progress) -> Store:
        """Make the store of the test drawers, with every net's logits and the combinations."""
        from logitstore.pipeline.cache.stage import cache
        from logitstore.pipeline.combine.stage import combine
        from logitstore.pipeline.specialists.captures import capture_specialists
        from logitstore.pipeline.specialists.training import train_specialists
        from logitstore.pipeline.workspace import Workspace

        path = self.folder / "test" / "store.zarr"
        content = test_document(self.settings, self.number, self.data, self.models, part.students)
        shown = parsed(content, "test drawers")
        test_drawers = Workspace(shown, path, self.models, progress=progress)
        cache(test_drawers)
        combinations = {"combined": (EXPERT, 1), **{name: VARIANTS[name] for name in part.variants}}
        for specialists in dict.fromkeys(kind for kind, _ in combinations.values()):
            home = Workspace.of_folder(self.experiment(specialists), self.folder, progress=progress)
            train_specialists(home)
            capture_specialists(home, onto=test_drawers)
        test = open_store(path)
        for name, (specialists, top) in combinations.items():
            combine(
                test,
                generalist="generalist",
                specialists=[f"{specialists}-*"],
                name=capture_name(name),
                top=top,
                progress=progress,
            )
        return open_store(path)

    def _experts(self, store: Store) -> list[str]:
        numbers = range(self.settings.clusters)
        return [name for n in numbers if (name := f"{EXPERT}-{n}") in store.teachers]

    def _measured(self, part: Part, home: Store, test: Store, progress: Progress) -> dict[str, Any]:
        """Measure the figures that `specialist_figures.tables` prints."""
        sets = list(sets_of(home.clustering("covariance"), home.num_classes))
        asked = [one for one in comparisons(test) if one.combined == "combined"]
        others = [*map(capture_name, part.variants), *part.students]
        asked += [Comparison("generalist", name, sets) for name in others]
        found = evaluate_captures(test, asked, progress=progress)
        by_name = {one.comparison.combined: one for one in found.compared}
        first = by_name["combined"]
        names = {"generalist": "generalist", "combined": "combined"}
        names |= {name: capture_name(name) for name in (*part.variants, *part.students)}
        captures = {}
        for name, capture in names.items():
            metrics = found.metrics[capture]
            restricted = first.before if name == "generalist" else by_name[capture].after
            captures[name] = {
                "accuracy": metrics.accuracy,
                "top_5": metrics.top_k_accuracy,
                "nll": metrics.nll,
                "calibration_error": metrics.calibration_error,
                "conditional": restricted.accuracy,
            }
        return {
            "seed": self.number,
            "settings": asdict(self.settings),
            "captures": captures,
            "coverage": [
                {
                    "covering": row.label,
                    **{k: getattr(row, k) for k in ("examples", "before", "after", "change")},
                }
                for row in first.coverage.rows()
            ],
            "specialists": [
                {
                    "name": one.name,
                    "generalist": one.generalist.accuracy,
                    "specialist": one.specialist.accuracy,
                    "examples": one.specialist.examples,
                }
                for one in first.specialists
            ],
            "clusters": self._clusters(home, test, progress),
            "cost": self._cost(part, test, sets),
        }

    def _clusters(self, home: Store, test: Store, progress: Progress) -> dict[str, dict[str, float]]:
        """Compare the clusters with the alphabets, and count the generalist's test errors inside a set."""
        truth, _ = alphabets_of(home.class_names)
        classes, labels = home.num_classes, test.samples.labels
        predictions = _predictions(test, "generalist", 0)
        seen = [
            _predictions(home, "generalist", view) for view in range(home.teachers["generalist"].num_views)
        ]
        confusions = {
            "confusion matrix, training views": confusion_between(
                np.tile(home.samples.labels, len(seen)), np.concatenate(seen), classes
            ),
            "confusion matrix, test drawers (their labels: a bound, not a method)": confusion_between(
                labels, predictions, classes
            ),
        }
        groups: dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        table = self.experiment().cluster
        assert table is not None
        for label, changes in clusterings(self.settings).items():
            other = Cluster.model_validate(table.model_dump(exclude_unset=True) | changes)
            cluster_store(home, other, progress=progress)
            home = open_store(self.folder / "store.zarr")
            part = home.clustering(other.part_name)
            groups[label] = part.small("assignment"), sets_of(part, classes)
        for name, matrix in confusions.items():
            made = confusable_sets(
                matrix,
                clusters=self.settings.clusters,
                classes_per_cluster=self.settings.classes_per_cluster,
                seed=self.number,
            )
            groups[name] = made.assignment, made.sets
        found = {
            name: {
                "ami": agreement_with(truth, assignment),
                "inside": share_inside(sets, labels, predictions, classes),
                "groups": len(np.unique(assignment)),
                "largest_group": int(np.bincount(assignment).max()),
            }
            for name, (assignment, sets) in groups.items()
        }
        assignment, sets = next(iter(groups.values()))
        random = np.random.default_rng(self.number)
        drawn = [random_sets(sets, classes, random) for _ in range(RANDOM_DRAWS)]
        shares = [share_inside(one, labels, predictions, classes) for one in drawn]
        chance, _ = agreement_by_chance(truth, assignment, self.number)
        found["random sets of the same size"] = {"ami": chance, "inside": float(np.mean(shares))}
        return found

    def _cost(self, part: Part, test: Store, sets: list[NDArray[np.int64]]) -> dict[str, dict[str, float]]:
        """Return parameters, forward passes an image, seconds of training."""
        covers = np.bincount(np.concatenate(sets), minlength=test.num_classes)
        active = float(covers[_predictions(test, "generalist", 0)].mean())
        generalist = self._facts("teachers", "generalist")
        experts = [self._facts("specialists", name) for name in self._experts(test)]
        ours = {
            "parameters": sum(one["parameters"] for one in experts),
            "seconds": sum(one["seconds"] for one in experts),
        }
        together = {key: generalist[key] + ours[key] for key in ours}
        students = {
            name: self._facts("students", f"{name}-seed{100 + self.number}") for name in part.students
        }
        return {
            "generalist": {**generalist, "passes": 1.0},
            f"generalist and {len(experts)} specialists": {**together, "passes": 1.0 + active},
            **{name: {**facts, "passes": 1.0} for name, facts in students.items()},
        }

    def _facts(self, kind: str, name: str) -> dict[str, float]:
        """Read parameters and seconds from the record beside the weights."""
        facts = json.loads(self.models.weights_path(kind, name).with_suffix(".json").read_bytes())["facts"]
        return {"parameters": facts["parameters"], "seconds": facts["seconds"]}


def capture_name(name: str) -> str:
    """Turn the name of a combination into a capture's name.

    >>> capture_name("combined, n = 5")
    'combined-n-5'
    """
    return "-".join("".join(c if c.isalnum() else " " for c in name.lower()).split())


def _predictions(store: Store, name: str, view: int) -> NDArray[np.int64]:
    """Return the most probable class of every row."""
    grid = store.grid
    parts = [
        store.teachers[name].read(slice(rows.start, rows.stop), view).argmax(axis=1)
        for rows in map(grid.rows, range(grid.num_blocks))
    ]
    return np.concatenate(parts).astype(np.int64)


# The command


def main(arguments: list[str] | None = None) -> None:
    """Run the parts that the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few classes, few epochs, one seed")
    parser.add_argument(
        "--held-out", action="store_true", help="test on three of the training drawers, to choose by"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=None, help="0 1 2 by default")
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time, a process each")
    parser.add_argument("--out", type=Path, default=None, help="runs/specialists by default")
    parser.add_argument("--tables", action="store_true", help="only print the tables of what is there")
    given = parser.parse_args(arguments)
    seeds = given.seeds or ([0] if given.quick else [0, 1, 2])
    kind = "-quick" if given.quick else "-held-out" if given.held_out else ""
    out = given.out or Path("runs") / f"specialists{kind}"
    shared = os.environ.get("LOGITSTORE_DATA")
    data = (Path(shared) / ZIP.name if shared else ZIP).resolve()
    if not given.tables:
        if not data.is_file():
            print(f"skipped: needs {data}; put it there, or set LOGITSTORE_DATA", file=sys.stderr)
            return
        settings = QUICK if given.quick else LOOK if given.held_out else Settings()
        todo = [Seed(settings, seed, data, out / f"seed-{seed}") for seed in seeds]
        _do(todo, given.jobs, [f"--{kind[1:]}"] if kind else [], out)
    done = [path for seed in seeds if (path := out / f"seed-{seed}" / "results.json").is_file()]
    if not done:
        print(f"no seed of {out} is done yet", file=sys.stderr)
        return
    text = tables([json.loads(path.read_bytes()) for path in done])
    if given.quick:
        text = "**A quick run: every stage works; these figures mean nothing.**\n\n" + text
    replace_file(out / "tables.md", text.encode())
    print(text)


def _do(todo: list[Seed], jobs: int, options: list[str], out: Path) -> None:
    """Run every seed, `jobs` at a time. options: the arguments that select these settings."""
    if jobs == 1 or len(todo) == 1:
        with show_progress(quiet=False) as progress:
            for seed in todo:
                seed.do(progress)
        return
    waiting, running, failed = list(todo), list[tuple[Seed, subprocess.Popen[bytes]]](), list[int]()
    while waiting or running:
        while waiting and len(running) < jobs:
            seed = waiting.pop(0)
            command = [sys.executable, __file__, "--seeds", str(seed.number), "--out", str(out)]
            seed.folder.mkdir(parents=True, exist_ok=True)
            log = (seed.folder / "log.txt").open("ab")
            environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
            process = subprocess.Popen(
                command + options,
                stdout=log,
                stderr=log,
                env=environment,
            )
            log.close()
            running.append((seed, process))
        seed, process = running.pop(0)
        if process.wait():
            failed.append(seed.number)
    if failed:
        raise SystemExit(f"seeds {failed} failed; see log.txt in their folders")


if __name__ == "__main__":
    main()
