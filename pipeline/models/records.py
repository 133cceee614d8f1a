"""Records of trained models: weights, and the identity that each was made from.

A trained model is two files: weights, and a record of its identity, the sha256 of the weights, and facts. A model counts as
made if its record has the wanted identity and the digest of its weights. No torch is imported, so that a finished experiment
is recognised at once.
"""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...storage.backends.posix import read_plain, remove_leftovers, replace_file
from ...storage.errors import BadDataError, LogitStoreError
from ...storage.format.documents import canonical_json, parse_json
from ...storage.identity import as_json
from ..factories.file_digest import file_digest
from ..factories.local_code import SOURCE
from ..factories.read_files import READ
from .loaders import with_stable_names

log = logging.getLogger(__name__)
WRONG_NAME = "correct the file name (relative ones start at the experiment file's folder)"
"""The remedy for a missing file."""
YOUNGER_KEYS = {SOURCE: "source", READ: "digests of files"}
"""Keys of identities that records, captures and checkpoints of earlier versions lack, with their words."""


@dataclass(frozen=True)
class Record:
    """A trained model, as in its record."""

    identity: Mapping[str, Any]
    """Everything that it follows from: factory, arguments, settings, seed, data."""
    weights: str
    """"sha256:…" of its weights file."""
    facts: Mapping[str, Any]
    """Figures such as parameters, seconds, last loss."""


def as_kept(ours: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    """Return our identity without the keys that came later than what is kept. kept: of a record or a checkpoint.

    >>> as_kept({"seed": 1, "source": {"mine.py": "sha256:…"}}, {"seed": 1})
    {'seed': 1}
    """
    return {key: value for key, value in ours.items() if key in kept or key not in YOUNGER_KEYS}


_told: set[str] = set()
"""Places that `warn_of_missing_keys` has named."""


def warn_of_missing_keys(ours: Mapping[str, Any], kept: Mapping[str, Any], where: str) -> None:
    """Warn once of what an older record or checkpoint does not hold, so that nobody compared it."""
    missing = sorted(YOUNGER_KEYS[key] for key in ours.keys() - as_kept(ours, kept).keys())
    if missing and where not in _told:
        _told.add(where)
        log.warning(
            "%s: written by a version that kept no %s of a model; whether it has changed since is not known",
            where,
            " and no ".join(missing),
        )


def check_loaded(where: str, expected: str | None, found: str) -> None:
    """Compare the digest of weights that were loaded with that of an identity, or of a record. Raises BadDataError.

    expected: None for weights that nothing was said of.
    """
    if expected not in (None, found):
        raise BadDataError(
            where,
            expected=f"the weights {expected}, as when this command began",
            found=found,
            remedy="run the same command again when nothing writes them any more",
        )


class Models:
    """The folder of an experiment's trained models."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def weights_path(self, kind: str, name: str) -> Path:
        """Return the file of a model's weights. kind: "teachers" or "students"."""
        return self.folder / kind / f"{name}.safetensors"

    def find(self, kind: str, name: str, identity: Mapping[str, Any]) -> Record | None:
        """Return the record of the model that was made from `identity`; None if the model must be made."""
        record, ours = self._read(kind, name), with_stable_names(as_json(identity))
        if record is None or record.identity != as_kept(ours, record.identity):
            return None
        path = self.weights_path(kind, name)
        try:
            if record.weights != weights_digest(path):
                return None
        except BadDataError:
            return None
        warn_of_missing_keys(ours, record.identity, str(path.with_suffix(".json")))
        return record

    def recorded_identity(self, kind: str, name: str) -> Mapping[str, Any] | None:
        """Return the identity in a model's record, even if its weights are gone; None without a record."""
        record = self._read(kind, name)
        return None if record is None else record.identity

    def record(self, kind: str, name: str) -> Record | None:
        """Return the record of a model, whatever it was made from; None without one."""
        return self._read(kind, name)

    def recorded_facts(self, kind: str, name: str) -> Mapping[str, Any]:
        """Return the facts in a model's record; none without a record."""
        record = self.record(kind, name)
        return {} if record is None else record.facts

    def _read(self, kind: str, name: str) -> Record | None:
        path = self.weights_path(kind, name).with_suffix(".json")
        try:
            value = parse_json(read_plain(path), str(path))
            return Record(with_stable_names(value["identity"]), value["weights"], value["facts"])
        except (OSError, LogitStoreError, AttributeError, KeyError, TypeError):
            return None

    def put(
        self, kind: str, name: str, identity: Mapping[str, Any], weights: str, facts: Mapping[str, Any]
    ) -> Record:
        """Write the record of a model after its weights."""
        record = Record(as_json(identity), weights, dict(facts))
        content = {"identity": record.identity, "weights": weights, "facts": record.facts}
        replace_file(self.weights_path(kind, name).with_suffix(".json"), canonical_json(content))
        return record

    def tidy(self, kind: str, name: str) -> None:
        """Remove what a killed run left of a model: unfinished files, and checkpoints of a training that has ended."""
        weights, record = self.weights_path(kind, name), self._read(kind, name)
        for suffix in (".safetensors", ".json", ".metrics.jsonl", "@best.safetensors", "@last.safetensors"):
            remove_leftovers(weights.with_name(f"{name}{suffix}"))
        folder = weights.with_suffix(".checkpoints")
        if record is not None and weights.exists() and folder.is_dir():
            of = [_identity_of_checkpoint(path) for path in folder.glob("*.json")]
            if of and all(identity == record.identity for identity in of):
                shutil.rmtree(folder, ignore_errors=True)


def _identity_of_checkpoint(path: Path) -> Mapping[str, Any] | None:
    """Return the identity in a checkpoint's file; None for one that cannot be read."""
    try:
        return with_stable_names(parse_json(read_plain(path), str(path))["record"]["identity"])
    except (OSError, LogitStoreError, AttributeError, KeyError, TypeError):
        return None


def weights_digest(path: Path) -> str:
    """Return "sha256:…" of a file, hashed again only after a change of the file.

    Raises BadDataError for a file that cannot be read.
    """
    try:
        return file_digest(path)
    except OSError as error:
        raise BadDataError(
            str(path),
            expected="a file of weights",
            found=error.strerror or str(error),
            remedy=WRONG_NAME,
        ) from error
