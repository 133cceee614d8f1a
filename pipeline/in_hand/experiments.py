"""Experiments of things in hand: the tables that a file would hold, with things in the place of factories.

    capture_of     teachers over a data set       stage one
    student_of     a student from a store         stage three

Every stage then runs as it does for a file. Keys have the names, the defaults and the checks of the tables.
"""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Shaped

from ...storage.api import Store
from ...storage.errors import ConfigError, FactoryError
from ...storage.format.constants import SAMPLES
from ...storage.parts.card import checked_card
from ...storage.stream.items import describe, read_inputs
from ..augment import CropFlip, Cutmix, Identity, Mixup, RandomResizedCrop, Seeded, Shift
from ..augment.rows import SEEDED
from ..augment.transforms import library_of
from ..datasets.class_names import names_of
from ..datasets.stored_images import stored_images
from ..experiment.document import Experiment
from ..experiment.schema import checked
from ..experiment.tables import Cache, Card, EvaluationSet, Student, Teacher, TransferSet, ViewAugmentation
from ..experiment.training import StudentTrain, of_thing
from ..factories.call import expect_augmentation
from ..factories.in_hand import InHand, in_hand
from ..factories.products import stated_source
from ..runtime.inference import device_of, forward
from ..transfer import TransferRows
from ..views import first_views, naming_unlike_views
from .data_sets import data_set_in_hand
from .networks import copy_of, kept_as_they_are, module_in_hand

_OURS: Final[Mapping[type, str]] = {
    Shift: "logitstore.pipeline.augment:shift",
    CropFlip: "logitstore.pipeline.augment:crop_flip",
    Identity: "logitstore.pipeline.augment:identity",
    Mixup: "logitstore.pipeline.augment:mixup",
    Cutmix: "logitstore.pipeline.augment:cutmix",
    RandomResizedCrop: "logitstore.pipeline.augment:random_resized_crop",
    Seeded: "logitstore.pipeline.augment:seeded",
}
"""Our own augmentations are stated as a file would state them, so that a file can name them for the same store."""
INITIAL: Final = "initial"
"""Key in the description of a student: the digest of the weights with which its training began."""


def capture_of(
    teachers: Any,
    dataset: Any,
    *,
    evaluation: Any = None,
    class_names: Sequence[str] | None = None,
    num_classes: int | None = None,
    augment: Any = None,
    augment_seed: int = 0,
    first_view: int = 1,
    transfer_set: Mapping[str, Any],
    cache: Mapping[str, Any],
    card: Mapping[str, str] | None = None,
) -> Experiment:
    """Return the experiment of stage one.

    teachers: networks by name. transfer_set, cache: further keys of these tables. card: of the store.

    Raises ConfigError or BadDataError for a thing that cannot be used.
    """
    networks = _teachers(teachers)
    given = data_set_in_hand(dataset, "dataset", class_names)
    views = cache.get("views", 1)
    if isinstance(views, int) and views > 1 and augment is None:
        found = f"views={views} without augment"
        remedy = "pass augment=…, a function (input, numpy generator) -> input"
        raise ConfigError(
            "cache: augment", expected="an augmentation, or views=1", found=found, remedy=remedy
        )
    view = _augmentation(augment, augment_seed, first_view)

    def of_set(classes: int | None) -> TransferSet:
        return of_thing(TransferSet, given, "dataset", num_classes=classes, **transfer_set)

    tables = {
        "card": Card(**checked_card(card)),
        "transfer_set": of_set(num_classes),
        "evaluation_set": _evaluation(evaluation),
        "teacher": tuple(
            of_thing(Teacher, one, f"teachers[{name!r}]", name=name, weights=one.weights)
            for name, one in networks.items()
        ),
        "cache": checked(Cache, "cache", augment=view, **cache),
    }
    experiment = _experiment(tables)
    if num_classes is not None or names_of(given.thing, "dataset"):
        return experiment
    read_inputs(
        [given.thing[0]], [0], "dataset"
    )  # an item of another form is refused under the name of the argument
    name, first = next(iter(networks.items()))
    rows = TransferRows(experiment)
    shown = first_views(experiment, rows)
    with naming_unlike_views(experiment, rows):
        outputs = _outputs(first.thing, shown, f"teacher {name!r}")
    return _experiment({**tables, "transfer_set": of_set(outputs)})


def student_of(
    store: Store,
    network: InHand,
    *,
    name: str,
    dataset: Any = None,
    evaluation: Any = None,
    validation: Any = None,
    augment: Any = None,
    teachers: Mapping[str, float] | Sequence[str],
    student: Mapping[str, Any],
    train: Mapping[str, Any],
    initial: str,
) -> Experiment:
    """Return the experiment of one student. network: of `module_in_hand`. student, train: further keys of these tables.

    validation: labelled examples, or a share of the rows. initial: digest of the weights with which its training began. Raises ConfigError or BadDataError for a thing that cannot
    be used.
    """
    keeps_inputs = store.samples.inputs is not None
    if dataset is None and not keeps_inputs and not store.samples.keeps_files:
        raise ConfigError(
            f"{store.path}",
            expected="inputs in the store, or a data set",
            found="a store without inputs, and dataset=None",
            remedy="pass dataset=…, the data set that the store was made from",
        )
    if keeps_inputs:
        dataset = StoredRows(store)
    elif store.samples.keeps_files:
        dataset = stored_images(store)
    given = data_set_in_hand(dataset, "dataset")
    shown = store.teachers[next(iter(teachers))]
    view, first_view = None, 1
    if shown.augmentation:
        if augment is None:
            raise ConfigError(
                "augment",
                expected=f"the augmentation that teachers/{shown.name} was captured with, {shown.augmentation['factory']}",
                found="None",
                remedy="pass augment=…, as you passed it to logitstore.cache",
            )
        first_view = int(shown.augmentation.get("first_view", 1))
        view = _augmentation(augment, int(shown.augmentation.get("seed", 0)), first_view)
    order = (store.identity_of(SAMPLES) or {}).get("order", {"kind": "as_is"})
    # It is trained itself: no copy of it.
    thing = replace(network, args={**network.args, INITIAL: initial}, weights=initial, copied=None)
    kind = {"order": order["kind"], **({"seed": order["seed"]} if "seed" in order else {})}
    named = dict(teachers) if isinstance(teachers, Mapping) else list(teachers)
    tables = {
        "transfer_set": of_thing(TransferSet, given, "dataset", num_classes=_stated(store, given), **kind),
        "evaluation_set": _evaluation(evaluation),
        "validation_set": None if isinstance(validation, float) else _evaluation(validation, "validation"),
        # Their networks are not needed: a student reads their captures.
        "teacher": tuple(
            checked(Teacher, f"teachers[{one!r}]", name=one, factory="logitstore:Capture", weights="captured")
            for one in teachers
        ),
        "cache": checked(
            Cache, "cache", augment=view, views=max(shown.num_views, first_view + 1) if view else 1
        ),
        "student": (
            of_thing(
                Student,
                thing,
                "distill",
                name=name,
                **({"teachers": named} if student["targets"] == "soft" else {}),
                train=checked(
                    StudentTrain,
                    "distill",
                    validation=validation if isinstance(validation, float) else None,
                    **train,
                ),
                **student,
            ),
        ),
    }
    return _experiment(tables)


@dataclass(frozen=True)
class StoredRows:
    """The inputs and labels of a store as a data set, in its order."""

    store: Store

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes."""
        return self.store.class_names

    def __len__(self) -> int:
        return self.store.num_rows

    def __getitem__(self, index: int) -> tuple[Any, int]:
        inputs = self.store.samples.reader.read("input", np.array([index]))
        return inputs[0], int(self.store.samples.labels[index])


def _teachers(teachers: Any) -> dict[str, InHand]:
    if not isinstance(teachers, Mapping) or not teachers:
        found = describe(teachers)
        raise ConfigError(
            "teachers",
            expected='networks by name, {"NAME": network}',
            found=found,
            remedy='pass {"teacher": network}',
        )
    return {name: module_in_hand(module, f"teachers[{name!r}]") for name, module in teachers.items()}


def _outputs(module: torch.nn.Module, shown: Shaped[np.ndarray, "few ..."], where: str) -> int:
    """Return the number of logits of a network, by a trial on a few inputs."""
    with kept_as_they_are([module]), torch.no_grad():
        copied = copy_of(module).eval()
        batch = torch.from_numpy(shown.copy()).to(device_of(copied))
        return int(forward(copied, batch, where).shape[1])


def _augmentation(augment: Any, seed: int, first_view: int) -> ViewAugmentation | None:
    if augment is None:
        return None
    try:
        expect_augmentation(augment, "augment")
    except FactoryError as error:
        remedy = "pass a function that takes an input and a numpy.random.Generator"
        if library_of(augment) is not None:
            remedy = f"pass {SEEDED}"
        raise ConfigError("augment", expected=error.expected, found=error.found, remedy=remedy) from None
    if type(augment) is Seeded:
        augment = replace(augment)  # without the transform that it has made, which would be described twice
    return of_thing(
        ViewAugmentation,
        _as_in_a_file(augment) or in_hand(augment),
        "augment",
        seed=seed,
        first_view=first_view,
    )


def _as_in_a_file(augment: Any) -> InHand | None:
    """Describe an augmentation of ours by its factory and arguments; None for one that a file cannot state."""
    factory = _OURS.get(type(augment))
    if factory is None:
        return None
    modules = set[str]()
    if isinstance(augment, Seeded):
        if not isinstance(augment.transform, str):
            return None
        modules = {augment.transform.partition(":")[0]}
    # Values that are the defaults are left out.
    usual = {
        one.name: one.default if one.default_factory is MISSING else one.default_factory()
        for one in fields(augment)
    }
    args = {name: value for name, default in usual.items() if (value := getattr(augment, name)) != default}
    return InHand(augment, factory, args, frozenset(modules), source=stated_source(factory, args))


def _evaluation(labelled: Any, where: str = "evaluation") -> EvaluationSet | None:
    if labelled is None:
        return None
    return of_thing(EvaluationSet, data_set_in_hand(labelled, where), where)


def _stated(store: Store, given: InHand) -> int | None:
    return None if names_of(given.thing, "dataset") else store.num_classes


def _experiment(tables: Mapping[str, Any]) -> Experiment:
    experiment = checked(Experiment, "experiment", **tables)
    experiment._base = Path.cwd()
    return experiment
