"""Notes of a capture: device, versions, and the local code of its teacher and its views.

`inspect` shows them beside the identity, and they are not compared, except for the digests of local code (`local_code`).
If that code changes, an unfinished capture is not resumed: its two halves would come from different code. For a sealed
capture the change is only logged, since it may be a comment.
"""

import contextlib
import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any, Final

from ..experiment.document import Experiment, TeacherMember
from ..factories.local_code import SOURCE
from ..factories.products import local_code_of

_LIBRARIES: Final = {"hugging_face": "transformers", "timm": "timm", "torchvision": "torchvision"}


def capture_notes(experiment: Experiment, member: TeacherMember, device: str) -> dict[str, Any]:
    """Return the notes of a capture. device: type of the device, as "cuda"."""
    import numpy as np
    import torch

    notes: dict[str, Any] = {
        "device": device,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
    }
    for key, library in _LIBRARIES.items():
        if getattr(member.teacher, key) is not None:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                notes[library] = importlib.metadata.version(library)
    return notes | source_note(experiment, member)


def source_note(experiment: Experiment, member: TeacherMember) -> dict[str, Mapping[str, str]]:
    """Return the note of the local code of a teacher and of the views; empty for installed modules."""
    augment = experiment.cache.augment
    tables = [member.teacher, *([augment] if augment is not None else [])]
    source = local_code_of(tables, base=experiment.base)
    return {SOURCE: source} if source else {}
