"""Tables of an experiment file: transfer set, teachers, cache, clustering, specialists, students."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from ...storage.checks import rows_by_share
from ...storage.encodings.encoding import Encoding
from ...storage.encodings.named import encoding_named
from ...storage.errors import ConfigError
from .schema import (
    NAME,
    Count,
    Name,
    NotNegative,
    Positive,
    Seed,
    Share,
    Table,
    Whole,
    check_distinct,
    check_name,
    problem,
    show,
)
from .training import Augmentation, Factory, Loss, StudentTrain, TeacherTrain, Train, as_loss


def _check_sets(value: object) -> object:
    """ "all", or the numbers of some sets."""
    if value == "all":
        return value
    numbers = (
        [n for n in value if isinstance(n, int) and not isinstance(n, bool) and n >= 0]
        if isinstance(value, list | tuple)
        else []
    )
    if not numbers or not isinstance(value, list | tuple) or len(numbers) != len(value):
        raise problem(
            "'all', or a list of numbers of sets, from 0", show(value), "write sets = 'all', or name some"
        )
    return check_distinct(tuple(numbers))


def _check_views(value: object) -> object:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if not whole and value not in ("all", "cycle"):
        raise problem("'all', 'cycle' or the number of a view, from 0", show(value), "write one of these")
    return value


class SpecialistTrain(Train):
    """`[specialists] train`: how each specialist is trained, from the weights of the generalist on."""

    checkpoint_every: Count | None = None
    """Steps between two checkpoints, from which an interrupted training goes on; None for none."""

    @classmethod
    def unknown_key(cls, key: str, known: list[str]) -> PydanticCustomError:
        if key == "seeds":
            return problem(
                "no 'seeds' for specialists",
                "them",
                "use specialists.seed, which counts up from set to set",
                key,
            )
        return super().unknown_key(key, known)

    @model_validator(mode="after")
    def _probabilities_stay_honest(self) -> "SpecialistTrain":
        if self.label_smoothing:
            raise problem(
                "no label_smoothing for specialists, whose correction for the shares of a batch rests on posteriors",
                show(self.label_smoothing),
                "drop it",
                "label_smoothing",
            )
        return self


class Specialists(Table):
    """`[specialists]`: one network for each confusable set of classes, begun from the generalist's weights."""

    generalist: Name | None = None
    """The teacher whose weights they begin with; one member where it has several. `cluster.teacher` by default."""
    clustering: Name | None = None
    """The clustering in the store that has the sets; that of `[cluster]` by default."""
    sets: Annotated[Literal["all"] | tuple[Whole, ...], BeforeValidator(_check_sets)] = "all"
    """Of which of its sets there are specialists."""
    name: Name | None = None
    """What they are called, followed by the number of the set; the name of the clustering by default."""
    variant: Literal["joint", "dustbin", "full"] = "joint"
    """All of the generalist's outputs, those of other classes as one dustbin; a new head with a dustbin of its own; or a
    softmax over all classes, held by the generalist's soft targets."""
    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of special rows in every batch."""
    temperature: Positive = 1.0
    """Of `full`: of the generalist's soft targets and of the specialist beside them, in training."""
    head: Annotated[str, Field(min_length=1)] | None = None
    """Of `dustbin`: the module that is replaced; the last linear layer of as many outputs as classes by default."""
    views: Annotated[Literal["all", "cycle"] | int, BeforeValidator(_check_views)] = "cycle"
    """Views of the rows that they learn from: all every epoch, another one each epoch, or this one."""
    seed: Seed = 0
    """Seed of the specialist of set 0; the others count up by the number of their set."""
    workers: Count = 1
    """Processes in which they are trained, each one by itself."""
    capture: bool = True
    """Whether they are run over the transfer set, and their logits kept."""
    train: SpecialistTrain
    """How each is trained. An epoch goes once through the special rows, and through as many others as `share` says."""

    @model_validator(mode="after")
    def _batches_hold_both(self) -> "Specialists":
        try:
            rows_by_share(self.train.batch_size, [self.share, 1 - self.share])
        except ConfigError:
            raise problem(
                "special rows and others in every batch",
                f"{self.train.batch_size}, with share = {self.share:g}",
                "raise it, or change share",
                "train.batch_size",
            ) from None
        return self

    @model_validator(mode="after")
    def _keys_have_effect(self) -> "Specialists":
        for key, has_effect in {"temperature": "full", "head": "dustbin"}.items():
            if key in self.model_fields_set and self.variant != has_effect:
                found, remedy = show(getattr(self, key)), f"drop it, or set variant = '{has_effect}'"
                raise problem(f"no {key} with variant = '{self.variant}'", found, remedy, key)
        return self


class Combine(Table):
    """`[combine]`: generalist and specialists as one capture (the paper's equation 5)."""

    name: Name = "combined"
    """Its name in the store; students may have it among their teachers."""
    top: Count = 1
    """Specialists of a row are those of its so many most likely classes, by the generalist."""
    direction: Literal["pq", "qp"] = "pq"
    """Whether KL(p, q) or KL(q, p) is minimised, p what each says and q what comes of it."""


def check_specialist_names(prefix: str, sets: int) -> None:
    """Refuse names that a store cannot have. Raises PydanticCustomError."""
    longest = f"{prefix}-{max(0, sets - 1)}"
    if not NAME.fullmatch(longest):
        raise problem("names of 64 characters at most", show(longest), "set name", "specialists.name")


def _check_encoding(value: object) -> object:
    try:
        encoding_named(value)
    except ConfigError as error:
        whole = error.where == "encoding"
        expected = (
            error.expected if whole else f"{error.where.removeprefix('encoding: ')} to be {error.expected}"
        )
        raise problem(expected, show(value) if whole else error.found, error.remedy) from None
    return value


def _check_digest_of(value: object) -> object:
    if value != "array":
        later = ", which this version cannot compute yet" if value == "file" else ""
        raise problem("'array'", f"{show(value)}{later}", "leave the key out")
    return value


def _as_weights(value: object) -> object:
    """`["wide", "deep"]` means equal weights."""
    if not isinstance(value, Mapping | list) or not value:
        raise problem(
            "a table of weights such as { wide = 1.0 }, or a list of teachers",
            show(value),
            "name at least one teacher",
        )
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        check_distinct(tuple(value))
        return dict.fromkeys(value, 1.0)
    return value


class TransferSet(Factory):
    """`[transfer_set]`: the examples that the teachers are run on."""

    order: Literal["shuffled", "as_is"] = "shuffled"
    """Order of the store's rows: a seeded permutation of the examples, or their own order."""
    seed: Seed = 0
    """Seed of that permutation."""
    store_inputs: bool = True
    """Whether the store keeps the inputs, so that students need nothing else."""
    digest_of: Annotated[Literal["array"], BeforeValidator(_check_digest_of)] = "array"
    """What a row's digest is taken over: dtype, shape and bytes of its input."""
    num_classes: Annotated[int, Field(ge=2)] | None = None
    """Number of classes, for a set that has no class_names, such as an unlabelled one."""

    @model_validator(mode="after")
    def _seed_has_effect(self) -> "TransferSet":
        if self.order == "as_is" and "seed" in self.model_fields_set:
            raise problem("no seed with order = 'as_is'", show(self.seed), "drop one of the two", "seed")
        return self


class EvaluationSet(Factory):
    """`[evaluation_set]`: the labelled examples that every accuracy in a table comes from."""


class ViewAugmentation(Augmentation):
    """`[cache] augment`: what makes one view of a row differ from another."""

    first_view: Whole = 1
    """The first view that is augmented; those before it are the row as it is."""


class Teacher(Factory):
    """`[[teacher]]`: a model whose logits are cached, or several that differ by their seed alone.

    In the place of `factory` one of the other sources may stand; then `factory` is what that source means.
    """

    name: Name
    """Its name in the store; with members, the common part of their names."""
    hugging_face: Annotated[str, Field(min_length=1)] | None = None
    """Folder of a Hugging Face model for image or sequence classification, in safetensors."""
    file: Annotated[str, Field(min_length=1)] | None = None
    """File of a whole network: `.pt2` (torch.export), or `.pt`, `.ts` (TorchScript). Loading it runs what it holds."""
    timm: Annotated[str, Field(min_length=1)] | None = None
    """Name of a network of timm; its weights come from `weights` or from `train`."""
    torchvision: Annotated[str, Field(min_length=1)] | None = None
    """Name of a classifier of torchvision; its weights come from `weights` or from `train`."""
    check_class_names: bool = True
    """Whether the class names that a model states must be those of the transfer set, in its order."""
    weights: Annotated[str, Field(min_length=1)] | None = None
    """File of its weights; with members, `{member}` in it stands for the member's number."""
    allow_pickle: bool = False
    """Whether `weights` may be a `.pt` or `.pth` file instead of safetensors."""
    train: TeacherTrain | None = None
    """How to train it, where there are no weights."""
    members: Count = 1
    """How many networks; more than one are called `<name>-0`, `<name>-1`, …"""
    seed: Seed = 0
    """Seed of the first member's training; the others count up from it."""

    @model_validator(mode="before")
    @classmethod
    def _factory_of_the_source(cls, data: object) -> object:
        if not isinstance(data, Mapping):
            return data
        given = [key for key in ("factory", *SOURCES) if key in data]
        if len(given) > 1:
            one = f"one of factory, {', '.join(SOURCES)}"
            raise problem(one, " and ".join(given), "drop all but one")
        if not given or given == ["factory"]:
            return data
        filled = {**data, "factory": SOURCES[given[0]]}
        args = data.get("args", {})
        if given[0] not in WHOLE and isinstance(args, Mapping):
            if "model" in args:
                raise problem(f"no model beside {given[0]}", show(args["model"]), "drop it", "args.model")
            filled["args"] = {**args, "model": data[given[0]]}
        return filled

    @model_validator(mode="after")
    def _whole_models_have_weights(self) -> "Teacher":
        for key in sorted(WHOLE):
            if getattr(self, key) is not None:
                for other in ("weights", "allow_pickle", "train", "seed"):
                    if other in self.model_fields_set:
                        raise problem(f"no {other} with {key}", "it", "drop one of the two", other)
        return self

    @model_validator(mode="after")
    def _weights_or_train(self) -> "Teacher":
        if self.hugging_face is not None or self.file is not None:
            key = "file" if self.hugging_face is None else "hugging_face"
            self._check_members(key, getattr(self, key))
            return self
        if (self.weights is None) == (self.train is None):
            raise problem(
                "either weights or train",
                "neither" if self.train is None else "both",
                "name a safetensors file in weights, or say in train how to train it",
            )
        if self.weights is None and self.allow_pickle:
            raise problem("no allow_pickle without weights", "it", "drop it", "allow_pickle")
        self._check_members("weights", self.weights)
        return self

    def _check_members(self, key: str, file: str | None) -> None:
        if self.members > 1 and file is not None and "{member}" not in file:
            raise problem(
                "a file a member, with {member} in the name",
                show(file),
                f"write it like 'wide-{{member}}{Path(file).suffix}', or drop members",
                key,
            )
        if self.members > 1:
            check_name(f"{self.name}-{self.members - 1}")

    @property
    def weights_file(self) -> str | None:
        """File or folder that its weights are in, `{member}` not filled in; None where it is trained here."""
        return self.weights or self.hugging_face or self.file

    @property
    def is_whole(self) -> bool:
        """Whether that file or folder holds the network as well as its weights."""
        return self.hugging_face is not None or self.file is not None

    @property
    def member_names(self) -> tuple[str, ...]:
        """The names in the store: its own, or one a member."""
        if self.members == 1:
            return (self.name,)
        return tuple(f"{self.name}-{member}" for member in range(self.members))


class Cache(Table):
    """`[cache]`: how the teachers are run and their logits kept."""

    encoding: Annotated[str | dict[str, Any], BeforeValidator(_check_encoding)] = "float16"
    """How the logits are stored: a name, `{ max_kl = …, min_temperature = … }` or `{ top_k = … }`."""
    views: Count = 1
    """Augmentations of every row, counting the row as it is."""
    augment: ViewAugmentation | None = None
    """What makes the views differ."""
    batch_size: Count = 256
    """Rows a teacher is given at a time; part of a capture's identity."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision that the teachers compute in; the lower ones are autocast."""
    block_rows: Count | None = None
    """Rows a block of the store; chosen from the size of a row where it is left out."""
    workers: Whole = 0
    """Processes that prepare the inputs; 0 for a thread of this one. The bytes do not depend on it."""
    compile: bool = False
    """Whether the teachers go through `torch.compile`; part of a capture's identity."""
    channels_last: bool = False
    """Whether images and the teachers' weights are laid out channels last; part of a capture's identity."""

    @property
    def chosen_encoding(self) -> Encoding:
        """The encoding that is meant."""
        return encoding_named(self.encoding)

    @model_validator(mode="after")
    def _views_differ(self) -> "Cache":
        if self.augment is None and self.views > 1:
            raise problem(
                "an augment, without which every view is the same",
                f"views = {self.views} alone",
                "add augment = { factory = … }, or drop views",
            )
        if self.augment is not None and self.augment.first_view >= self.views:
            raise problem(
                f"an augmented view among views = {self.views}",
                f"first_view = {self.augment.first_view}",
                "raise views, or set first_view = 0 to augment the only one",
                "augment",
            )
        return self


class Cluster(Table):
    """`[cluster]`: sets of classes that a teacher, or an ensemble, confuses."""

    teacher: Name | None = None
    """Whose predictions; one member where it has several."""
    teachers: Annotated[dict[str, Positive], BeforeValidator(_as_weights)] | None = None
    """Instead of `teacher`: an ensemble, whose softened probabilities are averaged. Weight of each, any scale; a list
    means equal weights, and a teacher with members stands for all of them, equally."""
    clusters: Count
    """Number of sets."""
    classes_per_cluster: Annotated[int, Field(ge=2)]
    """Classes a set; sets may overlap."""
    temperature: Positive = 1.0
    """Of the softmax whose covariance is taken."""
    seed: Seed = 0
    """Seed of k-means, of a projection and of the random sets to compare with."""
    method: Literal["online", "minibatch"] = "online"
    """K-means one column at a time, as in the paper, or scikit-learn's MiniBatchKMeans."""
    restarts: Count = 10
    """Starts of k-means, of which the tightest is kept."""
    normalise: bool = False
    """Whether correlations are clustered instead of covariances, so that rare classes count as much as others."""
    disjoint: bool = False
    """Whether no class is in two sets."""
    memory: Positive = 4.0
    """GiB that matrices of classes by classes may take; where they do not fit, projections of them are clustered."""
    name: Name | None = None
    """Name of the clustering in the store; `<teacher>-<clusters>x<classes_per_cluster>` by default."""

    @model_validator(mode="after")
    def _one_source(self) -> "Cluster":
        if (self.teacher is None) == (self.teachers is None):
            raise problem(
                "either teacher or teachers",
                "neither" if self.teacher is None else "both",
                "name the teacher whose predictions are clustered",
                "teacher",
            )
        return self

    @model_validator(mode="after")
    def _part_has_a_name(self) -> "Cluster":
        if not NAME.fullmatch(self.part_name):
            raise problem("a name of 64 characters at most", show(self.part_name), "set name", "name")
        return self

    @property
    def part_name(self) -> str:
        """Its name in the store."""
        return self.name or f"{self.teacher or 'ensemble'}-{self.clusters}x{self.classes_per_cluster}"

    @property
    def shares(self) -> dict[str, float]:
        """The share of each teacher in the predictions, by name; they sum to 1."""
        weights = self.teachers or {str(self.teacher): 1.0}
        total = sum(weights.values())
        return {name: weight / total for name, weight in weights.items()}

    def of_members(self, groups: Mapping[str, Sequence[str]]) -> "Cluster":
        """The same with every teacher that has several members in their place. groups: members of each, by name."""
        if self.teachers is None or all(len(groups.get(name, ())) < 2 for name in self.teachers):
            return self
        weights: dict[str, float] = {}
        for name, weight in self.teachers.items():
            members = groups.get(name, (name,))
            for member in members:
                weights[member] = weights.get(member, 0.0) + weight / len(members)
        return self.model_copy(update={"teachers": weights})


class Student(Factory):
    """`[[student]]`: a network trained from the store.

    With `targets = "hard"` it is the baseline, trained on the labels alone: then nothing that is about teachers
    may be given.
    """

    name: Name
    """Its name in tables and files."""
    targets: Literal["soft", "hard"] = "soft"
    """Whether it learns from the teachers' softened outputs or from the labels."""
    teachers: Annotated[dict[str, Positive], BeforeValidator(_as_weights)] | None = None
    """Weight of each teacher in the ensemble, any scale; a list means equal weights. A teacher with
    members stands for all of them, equally; one member is named like `wide-0`."""
    mean: Literal["arithmetic", "geometric"] = "arithmetic"
    """Of the teachers' softened probabilities."""
    temperature: Positive = 1.0
    """Of targets and student alike during the training."""
    hard_weight: NotNegative = 0.0
    """Weight of the cross-entropy with the labels, beside T² times the soft one."""
    loss: Annotated[Loss, BeforeValidator(as_loss)] = Loss()
    """What is made of the teachers' logits: a name, or a table with its numbers."""
    standardise: bool = False
    """Whether rows of logits, the teachers' and its own, are brought to mean 0 and deviation 1 before the loss."""
    views: Annotated[Literal["all", "cycle"] | int, BeforeValidator(_check_views)] = "cycle"
    """All views every epoch, another one each epoch, or this one."""
    rows: Share = 1.0
    """Share of the store's rows that it learns from, drawn from its seed."""
    train: StudentTrain
    """How it is trained, once a seed."""

    @model_validator(mode="after")
    def _targets_have_a_source(self) -> "Student":
        if self.targets == "soft" and self.teachers is None:
            raise problem(
                "the teachers that the soft targets come from",
                "no such key",
                "add teachers = { NAME = 1.0 }, or set targets = 'hard'",
                "teachers",
            )
        if self.targets == "hard":
            for key in ("teachers", "mean", "temperature", "hard_weight", "loss", "standardise"):
                if key in self.model_fields_set:
                    value = self.loss.name if key == "loss" else getattr(self, key)
                    raise problem(f"no {key} with targets = 'hard'", show(value), "drop it", key)
        return self

    @model_validator(mode="after")
    def _loss_takes_the_settings(self) -> "Student":
        if self.targets == "soft" and self.train.label_smoothing:
            raise problem(
                "no label_smoothing with targets = 'soft'",
                show(self.train.label_smoothing),
                "drop it, or set targets = 'hard'",
                "train.label_smoothing",
            )
        if self.loss.name == "logit_matching" and "temperature" in self.model_fields_set:
            raise problem(
                "no temperature with loss = 'logit_matching'",
                show(self.temperature),
                "drop it",
                "temperature",
            )
        return self

    @property
    def labels_needed_for(self) -> str | None:
        """The setting that the labels are needed for; None where they are not."""
        if self.targets == "hard":
            return 'targets = "hard"'
        if self.loss.name == "dkd":
            return 'loss = "dkd"'
        return f"hard_weight = {self.hard_weight:g}" if self.hard_weight else None


SOURCES: Final[Mapping[str, str]] = {
    "hugging_face": "logitstore.pipeline.models.hugging_face:classifier",
    "file": "logitstore.pipeline.models.exported:exported",
    "timm": "logitstore.pipeline.models.libraries:timm_model",
    "torchvision": "logitstore.pipeline.models.libraries:torchvision_model",
}
"""The keys that stand in the place of `factory`, and the factory that each means."""


WHOLE: Final = frozenset({"hugging_face", "file"})
"""Those whose files hold the network too."""
