"""Checkpoints of a training: written whole, read with checks.

    <name>.checkpoints/
        000000000400-3f9a….safetensors   tensors: weights, moving average, optimiser, random numbers
        000000000400.json                what they belong to, their sha256, and everything that is no tensor

Written as carefully as a shard: the tensors are staged, flushed and given their name, the names are flushed, and only
then is the JSON file published the same way: a checkpoint is there when its JSON file is. The last two are kept; what is
torn, cut or flipped does not have its sha256, and the one before it is taken.
"""

import contextlib
import hashlib
import logging
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import safetensors.torch
import torch
from torch import Tensor

from ... import __version__
from ...storage.backends.local import Folder
from ...storage.errors import BadDataError, LogitStoreError, StorageError, WriterBusy
from ...storage.format.documents import canonical_json, parse_json

log = logging.getLogger(__name__)
FORMAT: Final = 1
"""Version of what is written here."""
KEPT: Final = 2
"""Checkpoints that are kept: the last, and the one before, in case that the last cannot be read."""


@dataclass(frozen=True)
class Checkpoint:
    """A training between two steps."""

    step: int
    """Steps that were taken."""
    identity: Mapping[str, Any]
    """What the student follows from: the seals of all that it reads, its settings."""
    state: Mapping[str, Any]
    """Everything that is no tensor, as JSON."""
    tensors: Mapping[str, Tensor]
    """On the host."""


class Checkpoints:
    """The checkpoints of one training. One process at a time writes them."""

    def __init__(self, path: Path) -> None:
        """Set the folder, which is created with the first checkpoint."""
        self.path = path
        """Where they are."""
        self._folder = Folder(path)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint, durable when this returns, then let go of all but the last two.

        Raises StorageFull or StorageError, what was there is then still there; WriterBusy where somebody else
        has written a checkpoint of this step.
        """
        content = safetensors.torch.save(
            {name: t.detach().cpu().contiguous().clone() for name, t in checkpoint.tensors.items()}
        )
        digest = hashlib.sha256(content).hexdigest()
        number = f"{checkpoint.step:012}"
        file = f"{number}-{digest[:16]}.safetensors"
        record = {
            "format": FORMAT,
            "step": checkpoint.step,
            "identity": dict(checkpoint.identity),
            "state": dict(checkpoint.state),
            "tensors": {"file": file, "sha256": digest},
            "versions": {
                "logitstore": __version__,
                "python": platform.python_version(),
                "torch": torch.__version__,
            },
        }
        sealed = {"record": record, "sha256": _digest(record)}
        self._folder.put_new(file, content)  # a name that is taken has these bytes, or fails the digest
        if not self._folder.put_new(f"{number}.json", canonical_json(sealed)):
            raise WriterBusy(
                str(self.path / f"{number}.json"),
                expected="one process that trains this student",
                found="a checkpoint of this step from another process",
                remedy="wait for the other process, or end it, and run the same command again",
            )
        self._let_go(before=self._steps()[-KEPT:][0])

    def newest(self) -> Checkpoint | None:
        """Return the last complete checkpoint, or None.

        Raises BadDataError where there are some, and none of them is whole.
        """
        failed: list[BadDataError] = []
        for step in reversed(self._steps()):
            try:
                found = self.read(step)
            except BadDataError as error:
                failed.append(error)
                continue
            for broken in failed:
                log.warning("%s: %s; going on from step %d", broken.where, broken.found, step)
            return found
        if failed:
            raise failed[0]
        return None

    def read(self, step: int) -> Checkpoint:
        """Read the checkpoint after `step` steps. Raises BadDataError if it differs from what was written."""
        key = f"{step:012}.json"
        try:
            record = self._record(step)
            file, digest = str(record["tensors"]["file"]), record["tensors"]["sha256"]
            content = self._folder.read(file, self._folder.size(file))
            if hashlib.sha256(content).hexdigest() != digest:
                raise ValueError(f"other bytes in {file} than were written")
            tensors = safetensors.torch.load(content)
            return Checkpoint(step, record["identity"], record["state"], tensors)
        except StorageError:
            raise  # a disk that fails says nothing of the checkpoint
        except Exception as error:  # safetensors raises many kinds; all of them mean that it is none
            found = error.found if isinstance(error, LogitStoreError) else " ".join(str(error).split())
            if isinstance(error, FileNotFoundError):
                found = "no file of its tensors"
            raise BadDataError(
                str(self.path / key),
                expected="a checkpoint as it was written",
                found=found[:200] or type(error).__name__,
                remedy=f"delete {self.path} to begin the training anew",
            ) from error

    def identities(self) -> list[Mapping[str, Any]]:
        """Return the identities of the checkpoints that can be read."""
        found = []
        for step in self._steps():
            with contextlib.suppress(LogitStoreError, ValueError, KeyError, TypeError, OSError):
                found.append(self._record(step)["identity"])
        return found

    def keep_up_to(self, step: int) -> None:
        """Take away what killed or failed trainings have left after a step; 0 for all of it."""
        for later in self._steps():
            if later > step:
                self._folder.remove(f"{later:012}.json")
        if self._folder.kind() == "a folder":
            self._folder.sweep()
            self._let_go(before=0)

    def remove(self) -> None:
        """Take all of them away: the training is done. Raises StorageError."""
        self.keep_up_to(-1)
        with contextlib.suppress(FileNotFoundError):
            try:
                shutil.rmtree(self.path)
            except FileNotFoundError:
                raise
            except OSError as error:
                raise StorageError(
                    str(self.path),
                    expected="to take away the checkpoints of a training that is done",
                    found=error.strerror or str(error),
                    remedy="delete the folder",
                ) from error

    def _record(self, step: int) -> dict[str, Any]:
        """Parse the JSON file of a step. Raises ValueError, KeyError, ManifestInvalid."""
        key = f"{step:012}.json"
        sealed = parse_json(self._folder.read(key), str(self.path / key))
        record: dict[str, Any] = sealed["record"]
        if sealed["sha256"] != _digest(record):
            raise ValueError("other bytes than were written")
        if record["format"] != FORMAT or record["step"] != step:
            raise ValueError(f"format {record['format']}, step {record['step']}")
        return record

    def _steps(self) -> list[int]:
        """List the steps that have checkpoints, ascending."""
        stems = [name.removesuffix(".json") for name in self._folder.names() if name.endswith(".json")]
        return sorted(int(stem) for stem in stems if stem.isdecimal())

    def _let_go(self, *, before: int) -> None:
        """Take away the checkpoints before a step, and tensors that belong to none."""
        for step in self._steps():
            if step < before:
                self._folder.remove(f"{step:012}.json")
        left = {f"{step:012}" for step in self._steps()}
        for name in self._folder.names():
            if name.endswith(".safetensors") and name.partition("-")[0] not in left:
                self._folder.remove(name)


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(record)).hexdigest()
