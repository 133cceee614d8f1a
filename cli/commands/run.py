"""The command `run`: a whole experiment."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...storage.describe import clustering_record, store_record
from ..options import (
    device_option,
    dry_run_option,
    examples,
    experiment_argument,
    json_option,
    out_option,
    settings,
    verbosity_options,
)
from ..printing.clusterings import error_record, errors_sentence, print_clustering
from ..printing.progress import show_progress
from ..printing.scores import print_scores, score_records
from ..printing.stores import print_store
from ..printing.text import print_json, print_text, print_todo

if TYPE_CHECKING:
    from ...pipeline.experiment.document import Experiment


@click.command(
    "run",
    epilog=examples(
        "logitstore run experiments/mnist.toml",
        "logitstore run experiments/mnist.toml --out mnist --dry-run",
    ),
)
@verbosity_options
@experiment_argument
@out_option
@device_option
@dry_run_option
@json_option
def command(experiment: Path, out: Path | None, device: str | None, dry_run: bool, as_json: bool) -> None:
    """Do every stage of an EXPERIMENT that is not done: teachers, store, clusters, students, scores.

    What is done and unchanged is not done again: with another temperature only the students that it is for
    are trained. Everything goes to --out, runs/<name of the experiment> by default: store.zarr, models/ and
    evaluation.json.
    """
    from ...pipeline.experiment.document import load_experiment

    loaded = load_experiment(experiment)
    folder = Path("runs") / experiment.stem if out is None else out
    if dry_run:
        from ...pipeline.run import pending
        from ...pipeline.workspace import Workspace

        print_todo(pending(Workspace.of_folder(loaded, folder)).lines(), as_json=as_json)
    else:
        run_experiment(loaded, folder, device=device, as_json=as_json)


def print_verdicts(sentences: list[str]) -> None:
    """Print the comparisons of students after an empty line; nothing if there are none."""
    if sentences:
        print_text()
        print_text("\n".join(sentences))


def run_experiment(experiment: "Experiment", out: Path, *, device: str | None, as_json: bool = False) -> None:
    """Run an experiment in a folder; print what was done, the scores and the store."""
    from ...pipeline.evaluate.scores import verdicts
    from ...pipeline.run import run

    with show_progress(quiet=settings().quiet) as progress:
        report = run(experiment, out, device=device, progress=progress)
    sentences = verdicts(experiment, report.table)
    clustering = (
        None if experiment.cluster is None else clustering_record(report.store, experiment.cluster.part_name)
    )
    if as_json:
        print_json(
            {
                "done": report.done,
                "table": score_records(report.table),
                "verdicts": sentences,
                "clustering": clustering,
                "errors_inside": error_record(report.errors_inside),
                "store": store_record(report.store),
            }
        )
        return
    if report.done:
        print_text("done now:")
        print_text("\n".join(f"  {line}" for line in report.done))
    else:
        print_text("nothing to do: everything is done and unchanged")
    print_text()
    if report.table:
        print_scores(report.table)
        print_verdicts(sentences)
    else:
        print_text("no table of scores: the experiment has no [evaluation_set]")
    if clustering is not None:
        print_text()
        print_clustering(clustering)
        if report.errors_inside is not None:
            where = "the evaluation set"
            print_text(errors_sentence(clustering["teachers"], report.errors_inside, where))
    print_text()
    print_store(report.store)
