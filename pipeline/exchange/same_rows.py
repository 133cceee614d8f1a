"""The rows of an import, and their comparison with those of a store that is there.

Rows agree where their ids do, or their inputs, or, where neither is known, their labels. Whatever both sides have is compared,
and something must be: two data sets of one size are not the same rows.

    digest_of   the digest of a row is of …
    array       its input, where inputs or their digests are given
    id          its id
    row         its number: no more is known of it
"""

import os
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from ...storage.api import Store
from ...storage.digest import check_digests, digest_rows, given_digests
from ...storage.errors import BadDataError, ConfigError, RowMismatch, SpecMismatch
from ...storage.format.documents import shorten
from ...storage.parts.values import kept_example
from .arrays import open_file
from .forms import NPY, local_file, mapped_array

OF_INPUT: Final = "array"
OF_ID: Final = "id"
OF_ROW: Final = "row"
_LEAST_CLASSES: Final = 2
"""Classes that known labels must have at least: equal labels say nothing of the order of the rows."""


@dataclass(frozen=True)
class Rows:
    """The rows of an import, as far as they are known."""

    labels: NDArray[np.int64]
    """Of each row, -1 where unknown."""
    ids: list[str] | None
    """Of each row, if there are any."""
    inputs: Any
    """(rows, …), if the store is to keep them."""
    digests: NDArray[np.uint64]
    """Of each row."""
    digest_of: str
    """Content that the digests cover: one of the three above."""

    @property
    def example(self) -> Any:
        """An input, if the store keeps them."""
        return None if self.inputs is None else kept_example(self.inputs)

    @staticmethod
    def of(
        labels: NDArray[np.int64] | None,
        ids: list[str] | None,
        inputs: Any,
        digests: Any,
        num_rows: int,
        store_inputs: bool,
    ) -> "Rows":
        """Return the rows of what is given. Raises BadDataError, ConfigError for lengths that differ."""
        if labels is None:
            labels = np.full(num_rows, -1, np.int64)
        arrays = {"inputs": _array(inputs, "inputs"), "digests": _array(digests, "digests")}
        for name, array in arrays.items():
            if array is not None and len(array) != num_rows:
                raise BadDataError(
                    name,
                    expected=f"{num_rows:,}, one a row of the logits",
                    found=f"{len(array):,}",
                    remedy=f"name {name} of the same rows, in the same order",
                )
        kept = arrays["inputs"] if store_inputs else None
        if inputs is not None or digests is not None:
            found = given_digests(arrays["digests"], arrays["inputs"])
            return Rows(labels, ids, kept, found, OF_INPUT)
        if ids is not None:
            texts = [np.frombuffer(one.encode(), np.uint8) for one in ids]
            return Rows(labels, ids, None, _digests_of_texts(texts), OF_ID)
        return Rows(labels, None, None, digest_rows(np.arange(num_rows, dtype=np.int64)[:, None]), OF_ROW)


def _digests_of_texts(texts: list[NDArray[np.uint8]]) -> NDArray[np.uint64]:
    # One at a time: rows of several lengths have several headers.
    return np.concatenate([digest_rows([one]) for one in texts])


def _array(given: Any, name: str) -> Any:
    """Return an array that is given, or that a file holds. Raises BadDataError, ConfigError."""
    if not isinstance(given, str | os.PathLike):
        return None if given is None else np.asarray(given)
    path = local_file(given, name, "download the file first")
    if path.suffix != NPY:
        raise ConfigError(
            f"{name} {path}",
            expected="an array in .npy",
            found=path.suffix or "no ending",
            remedy="save it by numpy.save",
        )
    open_file(path)  # refuses what is no array of numbers
    return mapped_array(path)


def check_rows_agree(store: Store, rows: Rows, names: list[str] | None, num_classes: int) -> None:
    """Refuse a store whose rows are not those of an import. Raises ConfigError, RowMismatch, SpecMismatch, StoreIncomplete."""
    where = str(store.path)
    for what, found, expected in (
        ("rows", len(rows.labels), store.num_rows),
        ("classes", num_classes, store.num_classes),
    ):
        if found != expected:
            raise SpecMismatch(
                where,
                expected=f"{expected:,} {what}, as in the store",
                found=f"{found:,} in the files",
                remedy="name another store with --out, or files of its rows",
            )
    samples = store.samples
    if names is not None and samples.has_class_names and names != samples.class_names:
        place = next(
            c for c, (one, other) in enumerate(zip(names, samples.class_names, strict=True)) if one != other
        )
        raise SpecMismatch(
            f"{where}: class {place}",
            expected=f"the name {shorten(samples.class_names[place])}, as in the store",
            found=shorten(names[place]),
            remedy="put the columns into the order of the store's classes",
        )
    compared = []
    if rows.ids is not None and samples.has_ids:
        _compare("id", np.array(rows.ids), np.array(samples.ids), where)
        compared.append("ids")
    if rows.digest_of == OF_INPUT and samples.spec.identity.get("digest_of") == OF_INPUT:
        check_digests(range(len(rows.digests)), rows.digests, samples.digests, samples.source)
        compared.append("inputs")
    ours, theirs = rows.labels, samples.labels
    known = (ours >= 0) & (theirs >= 0)
    if known.any():
        _compare("label", np.where(known, ours, -1), np.where(known, theirs, -1), where)
        if len(np.unique(ours[known])) >= _LEAST_CLASSES:
            compared.append("labels")
    if not compared:
        has = [
            *(["ids"] if samples.has_ids else []),
            *(["labels"] if (theirs >= 0).any() else []),
            *(["inputs"] if samples.spec.identity.get("digest_of") == OF_INPUT else []),
        ]
        raise ConfigError(
            where,
            expected=f"{' or '.join(has) or 'ids or labels'} of the rows, to compare with those of the store",
            found="none that both have" if has else "a store that has neither",
            remedy=f"pass {' or '.join(f'--{one}' for one in has)}"
            if has
            else "make a new store, with --ids or --labels",
        )


def _compare(name: str, ours: NDArray[Any], theirs: NDArray[Any], where: str) -> None:
    """Refuse rows that differ. Raises RowMismatch with the first."""
    bad = np.flatnonzero(ours != theirs)
    if not len(bad):
        return
    row = int(bad[0])
    sorted_alike = np.array_equal(np.sort(ours), np.sort(theirs))
    raise RowMismatch(
        f"{where}: row {row}: {name}",
        expected=f"{shorten(theirs[row].item())}, as in the store",
        found=f"{shorten(ours[row].item())} ({len(bad)} of {len(ours)} rows differ)",
        remedy="sort the logits as the store is: row r is example store.samples.source[r] of its transfer set"
        if sorted_alike
        else "name files of the store's rows, or a new store",
    )
