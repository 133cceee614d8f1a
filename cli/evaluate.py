"""How good are the teachers, the ensembles and the students of an experiment?"""

from pathlib import Path

import click

from .options import (
    device_option,
    dry_run_option,
    examples,
    experiment_argument,
    json_option,
    models_option,
    settings,
    store_argument,
    verbosity_options,
)
from .output import print_json, print_text
from .progress import show_progress
from .run import print_todo, print_verdicts
from .show import print_scores, score_records


@click.command(
    "evaluate",
    epilog=examples(
        "logitstore evaluate experiments/mnist.toml runs/mnist/store.zarr",
        "logitstore evaluate experiments/mnist.toml runs/mnist/store.zarr --json",
    ),
)
@verbosity_options
@experiment_argument
@store_argument
@models_option
@device_option
@dry_run_option
@json_option
def command(
    experiment: Path, store: str, models: Path | None, device: str | None, dry_run: bool, as_json: bool
) -> None:
    """Score every model of an EXPERIMENT that is there on its evaluation set.

    Errors, accuracy, negative log-likelihood (nats), expected calibration error. Scores are kept beside the
    STORE, in evaluation.json, and measured again only where a model or the evaluation set has changed.
    """
    from ..pipeline.experiment import load_experiment
    from ..pipeline.records import Models
    from ..pipeline.results import verdicts
    from ..storage.api import open_store
    from ..storage.files import local_path

    found, path = load_experiment(experiment), local_path(store)
    kept, opened = Models(path.parent / "models" if models is None else models), open_store(path)
    scores = path.parent / "evaluation.json"
    from ..pipeline.evaluate import evaluate, evaluation_examples

    if dry_run:
        from ..pipeline.results import Scores, subjects
        from ..pipeline.transfer import TransferRows

        rows, known = TransferRows(found), Scores(scores)
        there = subjects(found, rows, kept, opened, evaluation_examples(found, rows.num_classes))
        missing = [subject for subject in there if known.get(subject) is None]
        print_todo([f"evaluate {subject.run or subject.name}" for subject in missing], as_json=as_json)
        return
    with show_progress(quiet=settings().quiet) as progress:
        table = evaluate(found, opened, kept, scores, device=device, progress=progress)
    sentences = verdicts(found, table)
    if as_json:
        print_json({"table": score_records(table), "verdicts": sentences})
    elif table:
        print_scores(table)
        print_verdicts(sentences)
    else:
        print_text(f"no model of the experiment is in {kept.folder} yet; make them with cache and train")
