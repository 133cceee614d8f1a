"""Notes of a capture: device, versions, and the source of a teacher that lies beside the experiment file.

`inspect` shows them beside the identity, and they are not compared, except for the digest of the source file. If that file
changes, an unfinished capture is not resumed: its two halves would come from different code. For a sealed capture the
change is only logged, since it may be a comment.
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
