"""The command `evaluate`: scores of the models of an experiment, or of the captures of a store."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .. import options
from ..printing.capture_scores import capture_records, print_captures
from ..printing.progress import show_progress
from ..printing.scores import print_scores, score_records
from ..printing.text import print_json, print_text, print_todo
from ..workspaces import store_to_read, workspace

if TYPE_CHECKING:
    from ...storage.api import Store
    from ...storage.backends.remote import Access


@options.subcommand(
    "evaluate",
    "logitstore evaluate experiments/mnist.toml runs/mnist/store.zarr",
    "logitstore evaluate experiments/mnist.toml runs/mnist/store.zarr --json",
    "logitstore evaluate runs/mnist/store.zarr",
)
@click.argument("places", nargs=-1, required=True, metavar="[EXPERIMENT] STORE")
@options.models_option
@options.device_option
@options.cache_options
@options.follow_links_option
@options.dry_run_option
@click.option(
    "--generalist",
    metavar="NAME",
    help="Without an experiment: the capture that every other one is compared with.",
)
@click.option(
    "--clustering",
    metavar="NAME",
    help="Without an experiment: the clustering whose sets the captures are compared by.",
)
@click.option(
    "--view", type=int, metavar="N", help="Without an experiment: the view to look at; 0 by default."
)
@options.json_option
def command(
    places: tuple[str, ...],
    models: Path | None,
    device: str | None,
    dry_run: bool,
    generalist: str | None,
    clustering: str | None,
    view: int | None,
    as_json: bool,
    **means: Any,
) -> None:
    """Score every model of an EXPERIMENT on its evaluation set, or every capture of a STORE on its own labels.

    With an experiment: errors, accuracy, negative log-likelihood (nats) and expected calibration error of every
    trained model. Scores are kept in evaluation.json beside the STORE. A score is measured again if its model or the
    evaluation set has changed.

    With a store alone: the same and top-5 of each capture. For every combination of a generalist with specialists,
    also the conditional accuracy (examples of special classes, predictions restricted to them), and the change by the
    number of specialists that cover the correct class. No model is run, nothing is written.
    """
    if len(places) > 2:
        raise click.UsageError(f"expected [EXPERIMENT] STORE, found {len(places)} arguments")
    of_store = {"--generalist": generalist, "--clustering": clustering, "--view": view}
    of_experiment = {"--models": models, "--device": device, "--dry-run": dry_run or None}
    whole = len(places) == 2
    for option, value in (of_store if whole else of_experiment).items():
        if value is not None:
            form = "a store without an experiment" if whole else "an experiment"
            raise click.UsageError(f"{option} is for {form}; remove it")
    access = options.access_of_options(**means)
    if whole:
        _evaluate_experiment(
            Path(places[0]), places[1], models, device, access, dry_run=dry_run, as_json=as_json
        )
    else:
        _evaluate_store(store_to_read(places[0], access), generalist, clustering, view or 0, as_json=as_json)


def _evaluate_store(
    store: "Store", generalist: str | None, clustering: str | None, view: int, *, as_json: bool
) -> None:
    from ...pipeline.evaluate.captures import comparisons, evaluate_captures

    with show_progress(quiet=options.settings().quiet) as progress:
        compare = comparisons(store, generalist=generalist, clustering=clustering)
        scores = evaluate_captures(store, compare, view=view, progress=progress)
    if as_json:
        print_json(capture_records(scores))
    else:
        print_captures(scores)


def _evaluate_experiment(
    experiment: Path,
    location: str,
    models: Path | None,
    device: str | None,
    access: "Access",
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    from ...pipeline.evaluate.scores import Scores, subjects, uncompared, verdicts
    from ...pipeline.evaluate.stage import evaluate
    from ...pipeline.evaluation_set import EvaluationExamples
    from ...pipeline.same_set import check_samples

    with workspace(experiment, location, models, device, access=access) as work:
        compared = check_samples(work.store, work.rows)  # nothing is evaluated without a store
        examples = EvaluationExamples(work.experiment, work.rows)
        if dry_run:
            missing = Scores(work.scores).missing(subjects(work, examples))
            lines = [f"evaluate {subject.run or subject.name}" for subject in missing]
            print_todo(lines, compared=compared, as_json=as_json)
            return
        table = evaluate(work, examples)
    sentences, unlike = verdicts(work.experiment, table), uncompared(work.experiment, table)
    if as_json:
        print_json({"table": score_records(table), "verdicts": sentences, "uncompared": unlike})
    elif table:
        print_scores(table, [*sentences, *unlike])
    else:
        print_text(f"no model of the experiment is in {work.models.folder}; make them with cache and train")
