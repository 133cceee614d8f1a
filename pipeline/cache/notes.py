"""Notes of a capture: device, versions, and the local code of its teacher and its views.

`inspect` shows them beside the identity, and they are not compared, except for the digests of local code (`local_code`).
If that code changes, an unfinished capture is not resumed: its two halves would come from different code. For a sealed
capture the change is only logged, since it may be a comment.
"""

import importlib.metadata
import platform
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from ..augment import Seeded
from ..experiment.document import Experiment, TeacherMember
from ..factories.in_hand import Description
from ..factories.local_code import SOURCE
from ..factories.products import augmentation_of, local_code_of

if TYPE_CHECKING:
    from torch import nn

LIBRARIES: Final = ("timm", "torchvision", "transformers", "albumentations")
"""Packages whose version is noted where a network or an augmentation has code of theirs."""


def capture_notes(
    experiment: Experiment, member: TeacherMember, module: "nn.Module", device: str
) -> dict[str, Any]:
    """Return the notes of a capture. module: the network that is run. device: type of the device, as "cuda"."""
    import numpy as np
    import torch

    notes: dict[str, Any] = {
        "device": device,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
    }
    used = {*_modules_of_network(member, module), *_modules_of_views(experiment)}
    return notes | versions_of(used) | source_note(experiment, member)


def versions_of(modules: Iterable[str]) -> dict[str, str]:
    """Return the versions of those of `LIBRARIES` that some modules are of."""
    packages = {module.partition(".")[0] for module in modules}
    found = {library: _version(library) for library in LIBRARIES if library in packages}
    return {library: version for library, version in found.items() if version}


def _version(library: str) -> str:
    """Return the version of a package; without metadata, as of a folder of sources, what it states itself."""
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return str(getattr(sys.modules.get(library), "__version__", ""))


def _modules_of_network(member: TeacherMember, module: "nn.Module") -> set[str]:
    """Return the modules that define the layers of a network, and what they inherit from."""
    kinds = {type(part) for part in module.modules()}
    given = member.teacher.in_hand
    return {str(base.__module__) for kind in kinds for base in kind.__mro__} | (
        set() if given is None else set(given.modules)
    )


def _modules_of_views(experiment: Experiment) -> set[str]:
    """Return the modules that define an augmentation, and a transform in it."""
    if (augment := experiment.cache.augment) is None:
        return set()
    given, found = augment.in_hand, Description()
    thing = augmentation_of(augment, base=experiment.base)
    found.add(type(thing))
    if isinstance(thing, Seeded):
        found.value(thing.made)
    return found.modules | (set() if given is None else set(given.modules))


def source_note(experiment: Experiment, member: TeacherMember) -> dict[str, Mapping[str, str]]:
    """Return the note of the local code of a teacher and of the views; empty for installed modules."""
    augment = experiment.cache.augment
    tables = [member.teacher, *([augment] if augment is not None else [])]
    source = local_code_of(tables, base=experiment.base)
    return {SOURCE: source} if source else {}
