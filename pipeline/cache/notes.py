"""Notes of a capture: device, versions, and the source of a teacher that lies beside the experiment file.

`inspect` shows them beside the identity, and they are not compared, except for the digest of the source file. If that file
changes, an unfinished capture is not resumed: its two halves would come from different code. For a sealed capture the
change is only logged, since it may be a comment.
"""

import contextlib
import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any, Final

from ..experiment.document import Experiment, TeacherMember
from ..factories import local_source

SOURCE: Final = "source"
"""Key of the note with the digests of a teacher's source, by file."""
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
    """Return the note of the file, beside the experiment, of a teacher's factory; empty for an installed module.

    The module is not imported, and the modules that it imports are not digested.
    """
    source = local_source(member.teacher.factory, experiment.base)
    return {SOURCE: source} if source else {}
