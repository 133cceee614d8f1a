"""With what was a capture made, beside all that it follows from?

Its identity (`agenda.capture_identity`) is compared, and what differs is refused. Notes are written beside it and
shown by `inspect`: device and versions, and for a teacher whose factory lies beside the experiment file the digest
of that source file. That one is half an identity: a capture that is begun is not gone on with from other source, as
nobody could tell its halves apart; of a sealed one a change is merely said, since it may be a comment.
"""

import contextlib
import hashlib
import importlib.metadata
import platform
import sys
from collections.abc import Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Final

from ..experiment.document import Experiment, TeacherMember

SOURCE: Final = "source"
"""The note that has the digests of a teacher's source, by file."""


_LIBRARIES: Final = {"hugging_face": "transformers", "timm": "timm", "torchvision": "torchvision"}


def capture_notes(experiment: Experiment, member: TeacherMember, device: str) -> dict[str, Any]:
    """Device and versions with which a capture is made, and the source of its teacher's factory where it is local.

    device: its type, as "cuda".
    """
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
    """The note of the file, beside the experiment, that a teacher's factory is in; empty for one that is installed.

    The module is not imported, and modules that it imports in turn are not looked at.
    """
    file = _local_file(member.teacher.factory.partition(":")[0], experiment.base)
    if file is None:
        return {}
    with contextlib.suppress(OSError):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        return {SOURCE: {file.relative_to(experiment.base).as_posix(): f"sha256:{digest}"}}
    return {}


def _local_file(module: str, base: Path) -> Path | None:
    top, *_ = module.split(".")
    place = base.resolve()
    # An installed module comes before one beside the experiment, as `factories.resolve` has it.
    elsewhere = [entry for entry in sys.path if Path(entry or ".").resolve() != place]
    if top in sys.builtin_module_names or PathFinder.find_spec(top, elsewhere) is not None:
        return None
    path = base.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)
