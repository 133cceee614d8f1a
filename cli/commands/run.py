"""The command `run`: a whole experiment."""

from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from ...storage.describe import clustering_record, store_record
from .. import options
from ..printing.clusterings import error_record, errors_sentence, print_clustering
from ..printing.encodings import echo
from ..printing.progress import show_progress
from ..printing.scores import print_scores, score_records
from ..printing.stores import format_bytes, print_store
from ..printing.text import nothing_to_do, print_json, print_text, print_todo

if TYPE_CHECKING:
    from ...pipeline.experiment.document import Experiment
    from ...storage.backends.remote import Access


@options.subcommand(
    "run",
    "logitstore run experiments/mnist.toml",
    "logitstore run experiments/mnist.toml --out mnist --dry-run",
    "logitstore run experiments/mnist.toml --out s3://bucket/mnist",
)
@options.experiment_argument
@options.out_or_url_option
@options.models_option
@options.device_option
@options.reuse_option
@options.cache_options
@options.dry_run_option
@options.json_option
def command(
    experiment: Path,
    out: PurePath | None,
    models: Path | None,
    device: str | None,
    reuse: tuple[str, ...],
    cache: Path | None,
    cache_size: str | None,
    no_cache: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Run the missing stages of an EXPERIMENT: teachers, store, clusters, students, scores.

    Finished work is skipped: after a change of temperature, only the students that use it are trained. Everything goes
    to --out, runs/<name of the experiment> by default: store.zarr, models/ and evaluation.json. With the URL of a bucket as
    --out, the store alone goes there, and the others to --models, runs/<name of the experiment>/models by default.
    """
    from ...pipeline.experiment.document import load_experiment

    loaded = load_experiment(experiment)
    local, access = Path("runs") / experiment.stem, options.access_of_options(cache, cache_size, no_cache)
    folder = local if out is None else out
    if not isinstance(folder, Path):
        models = models or local / "models"
        say_where(folder, models, access)
    if dry_run:
        from ...pipeline.run import pending
        from ...pipeline.workspace import Workspace

        todo = pending(Workspace.of_folder(loaded, folder, models, reuse=reuse, access=access))
        print_todo(todo.lines(), compared=todo.cache.compared, as_json=as_json)
    else:
        run_experiment(
            loaded, folder, models=models, device=device, reuse=reuse, access=access, as_json=as_json
        )


def say_where(out: PurePath, models: Path, access: "Access") -> None:
    """Print where the parts of a run go whose store is remote, and which of them need this disk, to stderr."""
    from ...pipeline.workspace import STORE

    kept = "no shards"
    if access.cache is not None:
        kept = f"at most {format_bytes(access.cache.most_bytes)} of shards in {access.cache.folder}"
    if not options.settings().quiet:
        echo(
            f"the store goes to {out / STORE}; on this disk: networks and scores in {models}, {kept}",
            err=True,
        )


def run_experiment(
    experiment: "Experiment",
    out: PurePath,
    *,
    device: str | None,
    models: Path | None = None,
    reuse: Sequence[str] = (),
    access: "Access | None" = None,
    as_json: bool = False,
) -> None:
    """Run an experiment in a folder; print the work that was done, the scores and the store. reuse: earlier stores.

    models: folder of the networks and scores, where out is a URL. access: the way to the store.
    """
    from ...pipeline.evaluate.scores import uncompared, verdicts
    from ...pipeline.run import run

    with show_progress(quiet=options.settings().quiet) as progress:
        way = {} if access is None else {"access": access}
        report = run(experiment, out, models, device=device, progress=progress, reuse=reuse, **way)
    compared, unlike = verdicts(experiment, report.table), uncompared(experiment, report.table)
    errors, cluster = report.errors_inside, experiment.cluster
    clustering = None if cluster is None else clustering_record(report.store, cluster.part_name)
    if as_json:
        print_json(
            {
                "done": report.done,
                "table": score_records(report.table),
                "verdicts": compared,
                "uncompared": unlike,
                "clustering": clustering,
                "errors_inside": error_record(errors),
                "store": store_record(report.store),
            }
        )
        return
    if report.done:
        figures = {line: f"  ({told})" for line, told in report.figures.items()}
        print_text("done now:", *(f"  {line}{figures.get(line, '')}" for line in report.done), "")
    else:
        print_text(nothing_to_do("everything is done and unchanged", report.compared), "")
    if report.table:
        print_scores(report.table, [*compared, *unlike])
    else:
        print_text("no table of scores: the experiment has no [evaluation_set]")
    if clustering is not None:
        print_text("")
        print_clustering(clustering)
        if errors is not None:
            several = ", each by itself" if len(clustering["teachers"]) > 1 else ""
            print_text(errors_sentence(clustering["teachers"], errors, f"the evaluation set{several}"))
    print_text("")
    print_store(report.store)
