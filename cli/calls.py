"""The stages as calls from Python, with networks and data sets in hand: `logitstore.cache`, `cluster`, `distill`, `evaluate`.

A call is to Python what a command is to the shell: it checks its arguments, calls the library, and prints as the command
does. On a terminal it shows progress and results; elsewhere it is silent unless `progress=True`.
"""

import contextlib
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from ..storage.extras import naming_extras
from ..storage.progress import Progress
from .argument_names import naming_arguments
from .calling import (
    Call,
    as_stores,
    as_weights,
    calling,
    check_log,
    check_scored,
    check_share,
    check_validation,
    end_if_imported,
    local_folder,
    opened_store,
    place_of,
    teacher_names,
)

if TYPE_CHECKING:
    from torch import nn

    from ..pipeline.evaluate.metrics import Metrics
    from ..pipeline.in_hand.training import Trained
    from ..storage.api import Store
    from ..storage.parts.clusterings import ClusteringReader

    Network = TypeVar("Network", bound=nn.Module)
else:
    Network = TypeVar("Network")

Precision = Literal["float32", "bfloat16", "float16"]


@naming_extras()
@naming_arguments("cache")
def cache(
    store: "Store | str | os.PathLike[str]",
    teachers: "Mapping[str, nn.Module]",
    dataset: Any,
    *,
    evaluation: Any = None,
    encoding: str | Mapping[str, Any] = "float16",
    views: int = 1,
    augment: Any = None,
    augment_seed: int = 0,
    first_view: int = 1,
    batch_size: int = 256,
    precision: Precision = "float32",
    class_names: Sequence[str] | None = None,
    num_classes: int | None = None,
    order: Literal["shuffled", "as_is"] = "shuffled",
    seed: int = 0,
    store_inputs: 'bool | Literal["encoded"]' = True,
    block_rows: int | None = None,
    card: Mapping[str, str] | None = None,
    workers: int = 0,
    threads: int | None = None,
    compile: bool = False,
    channels_last: bool = False,
    stop_below: float | None = None,
    reuse: "Store | str | os.PathLike[str] | Sequence[Store | str | os.PathLike[str]] | None" = None,
    device: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: "bool | Progress | None" = None,
) -> "Store":
    """Run networks once over a data set, and seal their logits in a store: stage one.

    Sealed captures are skipped, and an interrupted call that is made again resumes to the same bytes. The networks keep
    their mode, their device and their numbers: copies of them run, in evaluation mode. Under `torchrun` every rank makes
    the call, and the ranks share the rows.

    store: folder of the store, or its URL in a bucket, made if it is not there; more teachers may be added later.
    teachers: networks by name in the store. Each takes a batch (batch, …) of inputs, as the data set has them, to logits
        (batch, classes), or to an output with `logits`, as models of transformers do.
    dataset: `(inputs, labels)` or `inputs` as arrays or tensors; or a map-style data set whose items are
        `(input, label)`, an input, or a dict with one image and one label. A label of -1 is unknown.
    evaluation: labelled examples on which the teachers are scored; the scores stand in `evaluation.json` beside the store.
    encoding: of the logits: "float16", "float32", or `{"transform": {"max_kl": 1e-3}}` and others, as in `[cache]`.
    views: views of every row, the row itself included.
    augment: function (input, numpy.random.Generator) -> input that makes the further views, such as `shift(pixels=2)`.
    augment_seed: seed of the views.
    first_view: first view that is augmented.
    batch_size: rows that a network is given at a time; part of a capture's identity.
    precision: of the computation; the lower two use autocast.
    class_names: names of the classes in the order of the labels; by default `class_names`, `classes` or the
        `ClassLabel` of the data set.
    num_classes: number of classes, for a set without names; by default the number of the first teacher's logits.
    order: of the store's rows: a seeded permutation, or the order of the data set.
    seed: of the permutation.
    store_inputs: whether the store keeps the inputs, so that students need no data set; "encoded" keeps the files of images.
    block_rows: rows of a block; by default derived from the bytes of a row.
    card: whose store it is: any of `name`, `data_set`, `data_set_licence`, `licence`, `contact` and `description`, kept
        in a store that is new.
    workers: processes that prepare inputs; 0 for a thread. They need a data set that can be pickled, and a script that makes
        the call under `if __name__ == "__main__":`.
    threads: CPU threads of a network on the CPU; by default torch's own number.
    compile: whether the networks go through `torch.compile`.
    channels_last: whether images and weights are laid out channels last.
    stop_below: accuracy, from 0 to 1, below which a teacher stops the call after its first labelled rows.
    reuse: an earlier store, or several, as folder or URL: where the same network saw the same input, the logits are taken from
        there, and the networks run on the other rows alone.
    device: "cpu", "cuda", "cuda:1" …; by default the GPU if there is one.
    storage_options: of the library that opens the store's URL, as for `open_store`; an open store has its own.
    progress: True to print progress and results, False for none, or a callback; by default on a terminal alone.

    Returns the store, opened.
    Raises ConfigError for an argument that does not fit; BadDataError for a data set or a network that cannot be used,
    before the first teacher runs; SpecMismatch if a name in the store belongs to another network or to other settings;
    RowMismatch if a row has another input or label than in the store.
    """
    from ..pipeline.cache.stage import cache as run_stage
    from ..pipeline.evaluate.stage import evaluate as score
    from ..pipeline.evaluation_set import EvaluationExamples
    from ..pipeline.in_hand.experiments import capture_of
    from ..pipeline.in_hand.networks import kept_as_they_are
    from ..pipeline.workspace import Workspace
    from .printing.scores import print_scores

    end_if_imported(workers)
    check_share("stop_below", stop_below)
    with calling(progress) as call:
        experiment = capture_of(
            teachers,
            dataset,
            evaluation=evaluation,
            class_names=class_names,
            num_classes=num_classes,
            augment=augment,
            augment_seed=augment_seed,
            first_view=first_view,
            card=card,
            transfer_set={"order": order, "seed": seed, "store_inputs": store_inputs}
            if order == "shuffled"
            else {"order": order, "store_inputs": store_inputs},
            cache={
                "encoding": encoding,
                "views": views,
                "batch_size": batch_size,
                "precision": precision,
                "block_rows": block_rows,
                "workers": workers,
                "threads": threads,
                "compile": compile,
                "channels_last": channels_last,
            },
        )
        settings: dict[str, Any] = {"device": device, "progress": call.progress, "ranks": call.ranks}
        settings["reuse"] = as_stores(reuse)
        place, way = place_of(store, storage_options)
        settings |= way
        # Networks in hand are not kept: nothing is written to the folder of models.
        models = None if isinstance(place, Path) else Path("models")
        check_scored(place, evaluation)
        work = Workspace.of_store(experiment, place, models, **settings)
        examples = None if evaluation is None else EvaluationExamples(experiment, work.rows)
        with kept_as_they_are(teachers.values()):
            report = run_stage(work, stop_below=stop_below)
            _say_captured(call, report, work.store)
            if examples is not None and call.ranks.is_first:
                table = score(work, examples)
                lines = [f"{row.name}: {row.average('accuracy'):.2%} right" for row in table]
                call.say(lambda: print_scores(table, []), "; ".join(lines))
        call.ranks.wait()
        return work.store


def _say_captured(call: Call, report: Any, made: "Store") -> None:
    from .printing.stores import captured_line, print_store
    from .printing.text import nothing_to_do, print_text

    lines = [captured_line(name, report.quality[name]) for name in report.captured]
    if not lines:
        kept = f"{', '.join(report.kept)} captured already and unchanged"
        lines.append(nothing_to_do(kept, report.compared))

    def print_it() -> None:
        print_text(*lines, "")
        print_store(made)

    call.say(print_it, "; ".join(lines))


@naming_extras()
@naming_arguments("cluster")
def cluster(
    store: "Store | str | os.PathLike[str]",
    *,
    clusters: int,
    classes_per_cluster: int,
    teachers: str | Sequence[str] | Mapping[str, float] | None = None,
    temperature: float = 1.0,
    seed: int = 0,
    method: Literal["online", "minibatch"] = "online",
    restarts: int = 10,
    normalise: bool = False,
    disjoint: bool = False,
    memory: float = 4.0,
    name: str | None = None,
    scheduler: Any = "threads",
    storage_options: Mapping[str, Any] | None = None,
    progress: "bool | Progress | None" = None,
) -> "ClusteringReader":
    """Find the sets of classes that a teacher confuses, and seal them in the store: stage two.

    store: the store, or its folder or URL.
    clusters: number of sets.
    classes_per_cluster: number of classes in a set; sets may overlap.
    teachers: name of a capture; or an ensemble, as a list of names, or as weights by name. By default all teachers.
    temperature: of the softmax whose covariance is taken.
    seed: of k-means, and of the random sets to compare with.
    method: k-means one column at a time, as in the paper, or scikit-learn's `MiniBatchKMeans`.
    restarts: starts of k-means, of which the tightest is kept.
    normalise: whether correlations replace covariances, so that rare classes count as much.
    disjoint: whether a class is in one set at most.
    memory: GiB for matrices of classes by classes; where they do not fit, projections are clustered.
    name: name in the store; `<teacher>-<clusters>x<classes_per_cluster>` by default.
    scheduler: as of `dask.compute`.
    storage_options: of the library that opens the store's URL, as for `open_store`.
    progress: True to print progress and the sets, False for none, or a callback; by default on a terminal alone.

    Returns the clustering: `sets` int64 (clusters, classes_per_cluster), `assignment` int64 (classes,).
    Raises ConfigError for sizes that make no sets, SpecMismatch if the name belongs to another clustering.
    """
    from ..pipeline.cluster.stage import cluster_store, errors_in_sets
    from ..pipeline.cluster.todo import check_cluster, needs_clustering
    from ..pipeline.experiment.schema import checked
    from ..pipeline.experiment.tables import Cluster
    from ..storage.describe import clustering_record
    from ..storage.parts.clusterings import ClusteringReader
    from .printing.clusterings import errors_sentence, print_clustering
    from .printing.text import print_text

    with calling(progress) as call:
        opened = opened_store(store, storage_options)
        given = teacher_names(opened) if teachers is None else teachers
        names = as_weights(given)
        one = names[0] if isinstance(names, list) and len(names) == 1 else None
        table = checked(
            Cluster,
            "cluster",
            **({"teacher": one} if one is not None else {"teachers": names}),
            clusters=clusters,
            classes_per_cluster=classes_per_cluster,
            temperature=temperature,
            seed=seed,
            method=method,
            restarts=restarts,
            normalise=normalise,
            disjoint=disjoint,
            memory=memory,
            name=name,
        )
        for teacher in table.shares:
            _ = opened.teachers[teacher]  # raises for a missing teacher before anything else
        check_cluster(table, opened.num_classes)
        todo = needs_clustering(opened, table)
        if call.ranks.is_first:
            cluster_store(opened, table, scheduler=scheduler, progress=call.progress)
        call.ranks.wait()
        opened.refresh()
        nothing = f"nothing to do: clusters/{table.part_name} is made and unchanged"

        def print_it() -> None:
            if not todo:
                print_text(nothing)
            record = clustering_record(opened, table.part_name)
            errors = errors_in_sets(opened, table.part_name)
            print_clustering(record)
            if errors is not None:
                print_text("", errors_sentence(record["teachers"], errors, "the labelled rows"))

        call.say(print_it, f"made clusters/{table.part_name}" if todo else nothing)
        return ClusteringReader(opened.root, table.part_name)


@naming_extras()
@naming_arguments("distill")
def distill(
    store: "Store | str | os.PathLike[str]",
    student: "Network",
    *,
    lr: float,
    epochs: int,
    teachers: str | Sequence[str] | Mapping[str, float] | None = None,
    dataset: Any = None,
    augment: Any = None,
    evaluation: Any = None,
    validation: Any = None,
    validate_every: int = 1,
    keep: Literal["last", "best"] = "last",
    best_by: Literal["accuracy", "nll", "kl"] = "accuracy",
    log: "Literal['tensorboard'] | Callable[[int, dict[str, float]], object] | None" = None,
    checkpoint: "str | os.PathLike[str] | None" = None,
    checkpoint_every: int | None = None,
    name: str = "student",
    targets: Literal["soft", "hard"] = "soft",
    mean: Literal["arithmetic", "geometric"] = "arithmetic",
    temperature: float = 1.0,
    hard_weight: float = 0.0,
    loss: str | Mapping[str, Any] = "distillation",
    standardise: bool = False,
    views: Literal["all", "cycle"] | int = "cycle",
    rows: float = 1.0,
    seed: int = 0,
    optimizer: Literal["sgd", "adam", "adamw"] = "adam",
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    batch_size: int = 128,
    schedule: Literal["constant", "cosine", "linear"] = "constant",
    warmup_epochs: int = 0,
    label_smoothing: float = 0.0,
    clip_norm: float | None = None,
    ema: float | None = None,
    precision: Precision = "float32",
    compile: bool = False,
    workers: int = 0,
    device: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: "bool | Progress | None" = None,
) -> "Network":
    """Train a network from the logits in a store, without running a teacher: stage three.

    The network is trained in place, and returned in evaluation mode on the device on which you passed it. With `checkpoint`
    a killed call that is made again resumes to the same bytes, and a finished one loads its weights. Under `torchrun`
    every rank makes the call, and the ranks share each batch.

    store: the store, or its folder or URL.
    student: the network: inputs (batch, …), as the data set has them, to logits (batch, classes).
    lr: highest learning rate.
    epochs: passes over the rows.
    teachers: name of a capture; or an ensemble, as a list of names, or as weights by name. By default all teachers.
    dataset: the data set that the store was made from, for a store without inputs.
    augment: the augmentation of the captured views, as you passed it to `cache`.
    evaluation: labelled examples, on which the student is scored when it is trained. `evaluate` gives the same scores.
    validation: a share of the rows, such as 0.1, that it does not learn from, or labelled examples. It is validated on them
        after epochs: accuracy, NLL, and for a share the KL to the teachers.
    validate_every: epochs between two validations; the last epoch is always validated.
    keep: weights that the network ends with: of the last epoch, or of the best validated one. The other ones stand beside
        them in `checkpoint`.
    best_by: figure of the best epoch: "accuracy", "nll" or "kl".
    log: function of a step and its values by name, which is called every 20 steps, after each epoch and each validation;
        or "tensorboard", for its files in `checkpoint`.
    checkpoint: folder for checkpoints, the log of the training and the final weights; none of them by default.
    checkpoint_every: steps between two checkpoints; about an epoch by default.
    name: name of the files in `checkpoint`.
    targets: whether it learns from the teachers' softened outputs, or from the labels.
    mean: of the teachers' softened probabilities.
    temperature: of targets and student.
    hard_weight: weight of the cross-entropy with the labels, beside T² times the soft one.
    loss: "distillation", "logit_matching", "dkd", "dist", or a dict of a name and its numbers.
    standardise: whether each row of logits gets mean 0 and deviation 1 before the loss.
    views: all views every epoch, another one each epoch, or this one.
    rows: share of the rows that it learns from, drawn from the seed.
    seed: of the batches, and of dropout.
    optimizer: "sgd", "adam" or "adamw".
    momentum: of "sgd".
    weight_decay: of the optimiser.
    batch_size: rows of a step, of all ranks together.
    schedule: of the learning rate after the warm-up.
    warmup_epochs: epochs over which the learning rate rises from 0.
    label_smoothing: share of a label's target that is spread over all classes, for hard targets.
    clip_norm: maximum norm of the gradient.
    ema: decay a step of the moving average of the weights, which is kept instead of the last step.
    precision: of the computation; the loss is always float32.
    compile: whether the network goes through `torch.compile`.
    workers: processes that decode and augment inputs; 0 for threads. The batches are the same. They need a data set and an
    augmentation that can be pickled, and a script that makes the call under `if __name__ == "__main__":`.
    device: "cpu", "cuda", "cuda:1" …; by default the GPU if there is one.
    storage_options: of the library that opens the store's URL. For a cache of your own pass `open_store(url, cache=…)`.
    progress: True to print progress and scores, False for none, or a callback; by default on a terminal alone.

    Returns the network that you passed.
    Raises ConfigError for an argument that does not fit, or a training that diverges; BadDataError for a network without
    parameters, and for labels that are needed and missing; SpecMismatch for checkpoints of another store, network or
    setting, and for another augmentation.
    """
    from ..pipeline.in_hand.training import Distillation, train_in_hand

    end_if_imported(workers)
    with calling(progress) as call, contextlib.ExitStack() as stack:
        opened = opened_store(store, storage_options)
        names = teacher_names(opened) if teachers is None else teachers
        check_validation(validation, evaluation, keep)
        outlet = check_log(log, checkpoint)
        folder = local_folder("checkpoint", checkpoint)
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="logitstore-")))
        settings = {
            "targets": targets,
            "mean": mean,
            "temperature": temperature,
            "hard_weight": hard_weight,
            "loss": dict(loss) if isinstance(loss, Mapping) else loss,
            "standardise": standardise,
            "views": views,
            "rows": rows,
        }
        train = {
            "lr": lr,
            "epochs": epochs,
            "optimizer": optimizer,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "batch_size": batch_size,
            "schedule": schedule,
            "warmup_epochs": warmup_epochs,
            "label_smoothing": label_smoothing,
            "clip_norm": clip_norm,
            "ema": ema,
            "precision": precision,
            "compile": compile,
            "workers": workers,
            "seeds": [seed],
            "checkpoint_every": checkpoint_every,
            "validate_every": validate_every,
            "keep": keep,
            "best_by": best_by,
            "log": "tensorboard" if outlet is None and log is not None else None,
        }
        asked = Distillation(
            store=opened,
            network=student,
            name=name,
            teachers=as_weights(names),
            dataset=dataset,
            augment=augment,
            evaluation=evaluation,
            validation=validation,
            folder=folder,
            is_kept=checkpoint is not None,
            student=settings,
            train=train,
        )
        means: dict[str, Any] = {"device": device, "progress": call.progress, "ranks": call.ranks}
        done = train_in_hand(asked, outlet=outlet, **means)
        _say_trained(call, name, done)
        return student


def _say_trained(call: Call, name: str, done: "Trained") -> None:
    from .printing.text import nothing_to_do, print_text

    lines = [nothing_to_do(f"{name} is trained and unchanged") if done.was_there else f"trained   {name}"]
    if done.validated:
        lines.append(f"validated {done.validated}")
    if done.metrics is not None:
        lines.append(_score_line(name, done.metrics))
    call.say(lambda: print_text(*lines), "; ".join(lines))


def _score_line(name: str, metrics: "Metrics") -> str:
    return (
        f"{name}: {metrics.accuracy:.2%} of {metrics.rows:,} examples right, {metrics.nll:.4f} nats, "
        f"calibration error {metrics.calibration_error:.4f}"
    )


@naming_extras()
@naming_arguments("evaluate")
def evaluate(
    network: "nn.Module",
    dataset: Any,
    *,
    batch_size: int = 512,
    device: str | None = None,
) -> "Metrics":
    """Score a network on labelled examples: errors, accuracy, likelihood, calibration.

    The network keeps its mode and its device.

    network: inputs (batch, …), as the data set has them, to logits (batch, classes).
    dataset: labelled examples, in any form that `cache` takes. Labels are numbers of the network's classes.
    batch_size: examples that the network is given at a time.
    device: "cpu", "cuda", "cuda:1" …; by default the GPU if there is one.

    Returns `errors`, `accuracy`, `nll` in nats an example, `calibration_error` from 0 to 1, `top_k_accuracy`.
    Raises BadDataError for a data set without labels, or a network that cannot be run.
    """
    from ..pipeline.in_hand.networks import kept_random_state
    from ..pipeline.in_hand.training import metrics_of
    from ..storage.checks import whole_number

    whole_number("batch_size", batch_size, 1)
    with kept_random_state():
        return metrics_of(network, dataset, batch_size=batch_size, device=device)
