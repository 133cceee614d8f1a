"""Checkpoints of a training: written whole, read with checks.

    <name>.checkpoints/
        000000000400-3f9a….safetensors   tensors: weights, moving average, optimiser, random numbers
        000000000400.json                their identity and sha256, and the state besides tensors

A checkpoint is written like a shard: the tensors are staged, flushed and named, then the JSON file. The checkpoint exists
once its JSON file does. The last two are kept: if the sha256 finds one torn, truncated or flipped, the other is used.
"""

import contextlib
import hashlib
import logging
import platform
import shutil
from collections.abc import Collection, Mapping
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
"""Version of the format of checkpoints."""
KEPT: Final = 2
"""Checkpoints that are kept: the last, and the one before in case the last cannot be read."""


@dataclass(frozen=True)
class Checkpoint:
    """A training between two steps."""

    step: int
    """Steps so far."""
    identity: Mapping[str, Any]
    """Identity of the student: the seals of the parts that it reads, and its settings."""
    state: Mapping[str, Any]
    """Everything besides tensors, as JSON."""
    tensors: Mapping[str, Tensor]
    """Tensors by name, on the host."""


class Checkpoints:
    """The checkpoints of one training, written by one process at a time."""

    def __init__(self, path: Path) -> None:
        """Set the folder, which is created with the first checkpoint."""
        self.path = path
        """Their folder."""
        self._folder = Folder(path)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write a checkpoint durably, then delete all but the last two.

        Raises StorageFull or StorageError, after which the earlier checkpoints are intact; WriterBusy if another process
        wrote a checkpoint of this step.
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
        self._folder.put_new(file, content)  # a file of this name has these bytes, or fails its digest
        if not self._folder.put_new(f"{number}.json", canonical_json(sealed)):
            raise WriterBusy(
                str(self.path / f"{number}.json"),
                expected="one process that trains this student",
                found="another process, which wrote this checkpoint",
                remedy="wait for the other process, or end it, and run the same command again",
            )
        self._keep(self._steps()[-KEPT:])

    def newest(self, most: int | None = None) -> Checkpoint | None:
        """Return the last complete checkpoint, or None.

        most: bytes that its tensors may have; a longer file is not read.
        Raises BadDataError if there are checkpoints, but none can be read.
        """
        failed: list[BadDataError] = []
        for step in reversed(self._steps()):
            try:
                checkpoint = self.read(step, most)
            except BadDataError as error:
                failed.append(error)
                continue
            for broken in failed:
                log.warning("%s: %s; resuming from step %d", broken.where, broken.found, step)
            return checkpoint
        if failed:
            raise failed[0]
        return None

    def read(self, step: int, most: int | None = None) -> Checkpoint:
        """Read the checkpoint after `step` steps. Raises BadDataError for a missing, damaged or longer file."""
        key = f"{step:012}.json"
        try:
            record = self._record(step)
            file, digest = str(record["tensors"]["file"]), record["tensors"]["sha256"]
            size = self._folder.size(file)
            if most is not None and size > most:
                raise ValueError(f"{size:,} bytes of tensors, above the {most:,} that this training may have")
            content = self._folder.read(file, size)
            if hashlib.sha256(content).hexdigest() != digest:
                raise ValueError(f"other bytes in {file}")
            tensors = safetensors.torch.load(content)
            return Checkpoint(step, record["identity"], record["state"], tensors)
        except StorageError:
            raise  # a failing disk does not make the checkpoint wrong
        except Exception as error:  # safetensors raises many types of error for broken files
            found = error.found if isinstance(error, LogitStoreError) else " ".join(str(error).split())
            if isinstance(error, FileNotFoundError):
                found = "a checkpoint without its tensors"
            raise BadDataError(
                str(self.path / key),
                expected="a checkpoint with the bytes of its sha256",
                found=found[:200] or type(error).__name__,
                remedy=f"delete {self.path} to restart the training",
            ) from error

    def identities(self) -> list[Mapping[str, Any]]:
        """Return the identities of the checkpoints that can be read."""
        identities = []
        for step in self._steps():
            with contextlib.suppress(LogitStoreError, ValueError, KeyError, TypeError, OSError):
                identities.append(self._record(step)["identity"])
        return identities

    def keep_up_to(self, step: int) -> None:
        """Delete the checkpoints after a step, and the leftovers of killed trainings."""
        if self._folder.kind() == "a folder":
            self._folder.sweep()
            self._keep([earlier for earlier in self._steps() if earlier <= step])

    def remove(self) -> None:
        """Delete all checkpoints of a finished training. Raises StorageError."""
        self.keep_up_to(-1)
        try:
            shutil.rmtree(self.path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise StorageError(
                str(self.path),
                expected="a folder of checkpoints that can be deleted",
                found=f"a folder that cannot ({error.strerror or error})",
                remedy="delete the folder",
            ) from error

    def _record(self, step: int) -> dict[str, Any]:
        """Parse the JSON file of a step. Raises ValueError, KeyError, ManifestInvalid."""
        key = f"{step:012}.json"
        sealed = parse_json(self._folder.read(key), str(self.path / key))
        record: dict[str, Any] = sealed["record"]
        if sealed["sha256"] != _digest(record):
            raise ValueError("other bytes")
        if record["format"] != FORMAT or record["step"] != step:
            raise ValueError(f"format {record['format']}, step {record['step']}")
        if not all(isinstance(record[key], Mapping) for key in ("identity", "state", "tensors")):
            raise ValueError("an identity, a state or tensors that are no JSON object")
        return record

    def _steps(self) -> list[int]:
        """List the steps that have checkpoints, ascending."""
        stems = [name.removesuffix(".json") for name in self._folder.names() if name.endswith(".json")]
        return sorted(int(stem) for stem in stems if stem.isdecimal())

    def _keep(self, steps: Collection[int]) -> None:
        """Delete the checkpoints of all other steps, and tensors without a checkpoint."""
        for step in self._steps():
            if step not in steps:
                self._folder.remove(f"{step:012}.json")
        kept = {f"{step:012}" for step in steps}
        for name in self._folder.names():
            if name.endswith(".safetensors") and name.partition("-")[0] not in kept:
                self._folder.remove(name)


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(record)).hexdigest()
