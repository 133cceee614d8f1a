"""A transfer set compared with the samples of a store, and with itself.

`check_samples` is the door of every command that uses a set beside a store. It compares, in this order:

1. sizes, the set's statement (fingerprint, or factory and arguments), order and class names;
2. the index of each row, the ids, and the labels and inputs that were read of the set (`Examples.looked`).

`check_repeatable` finds a set that gives other examples each time, before a teacher is run on it; `check_read_again` finds
what it misses in the rows that the teachers are shown.
"""

import logging
import threading
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped, UInt64

from ..storage.api import Store
from ..storage.digest import digest_rows
from ..storage.errors import BadDataError, LogitStoreError, RowMismatch, SpecMismatch
from ..storage.format.constants import SAMPLES
from ..storage.identity import as_json, check_same
from ..storage.parts.same_rows import check_knows_inputs
from ..storage.stream.items import listed_labels
from .datasets.stored_images import stored_images
from .experiment.document import Experiment
from .experiment.tables import TransferSet
from .experiment.training import of_thing
from .factories.in_hand import InHand, name_of
from .transfer import Examples, Looked, TransferRows
from .workspace import Workspace

log = logging.getLogger(__name__)
_REMEDY = "use the transfer set that the store was made from, or make a new store (another --out)"
DECODING = "decoding"
"""Key in the identity of samples that keep files: the way to the pixels of an input."""
CONCATENATED = "concatenated"
"""Key in the identity of samples whose rows come from several stores."""
_REPEATED = 64
"""Examples that are fetched twice."""
_REFETCHED = 16
"""Examples with another label in the set's list that are fetched for their own."""
_BUILT_TWICE_BYTES = 1 << 30
"""Bytes of inputs up to which a set is also made twice."""


def check_samples(store: Store, rows: TransferRows) -> str:
    """Compare the transfer set with that of a store; return the extent of the comparison in words.

    Raises SpecMismatch for another set, order or class, RowMismatch for a row with another label or input, ConfigError for a
    store that knows no inputs.
    """
    ours: dict[str, Any] = {"rows": len(rows), "classes": rows.num_classes}
    theirs: dict[str, Any] = {"rows": store.num_rows, "classes": store.num_classes}
    begun = store.begun(SAMPLES)
    if is_joined := CONCATENATED in (store.identity_of(SAMPLES) or {}) and store.is_whole(SAMPLES):
        rows.source = store.samples.source  # of the sets of its sources, one behind the other
        rows.is_joined = True
    if (samples := store.identity_of(SAMPLES)) is not None:
        check_knows_inputs(samples, str(store.path))
        ours |= samples_identity(rows, samples, is_begun=begun is not None)
        theirs |= {key: value for key, value in samples.items() if key != "views"}
    check_same(
        f"{store.path}: {SAMPLES}",
        as_json(ours),
        theirs,
        made="from which it was made",
        remedy="change the transfer set back, or make a new store (another --out)",
    )
    looked = rows.looked if rows.fingerprint is None or is_joined else _listed(rows)
    if store.is_whole(SAMPLES):
        check_names(store, rows)
        if not np.array_equal(store.samples.source, rows.source):
            raise SpecMismatch(
                f"{store.path}: {SAMPLES}/source",
                expected="the order of the transfer set that the experiment states",
                found="another order",
                remedy="run `logitstore verify` on the store",
            )
        check_ids(rows, store.samples.ids, range(store.num_rows))
        if looked is not None:
            _check_looked(rows, looked, store.samples.labels, store.samples.digests)
    elif begun is not None and looked is not None:
        labels, digests = np.full(len(rows), -1, np.int64), np.zeros(len(rows), np.uint64)
        for block, values in store.committed_samples("label"):
            labels[block.start : block.stop] = values
        committed = np.zeros(len(rows), bool)
        for block, values in store.committed_samples("digest"):
            digests[block.start : block.stop] = values
            committed[block.start : block.stop] = True
        _check_looked(rows, looked, labels, digests, committed)
    if rows.fingerprint is None or is_joined:
        return rows.looked.describe()
    return "fingerprint of the transfer set" + (" and all labels" if looked is not None else "") + " compared"


def _listed(rows: TransferRows) -> Looked | None:
    """Return the labels that a set with a fingerprint lists, which a user's fingerprint may not cover; None without a list."""
    labels = listed_labels(rows.dataset)
    if labels is None:
        return None
    nothing = np.zeros(0, np.int64)
    return Looked(len(rows), nothing, nothing.astype(np.uint64), np.arange(len(rows)), labels)


def compared_inputs(work: Workspace) -> TransferRows | None:
    """Return the transfer set, compared with the store, if the store keeps no inputs; None if it keeps them.

    If it keeps their files, they are the set (`stored_set`). Raises as `check_samples`.
    """
    if work.store.samples.inputs is not None:
        return None
    if work.store.samples.keeps_files:
        return TransferRows(stored_set(work.experiment, work.store))
    check_samples(work.store, work.rows)
    return work.rows


def stored_set(experiment: Experiment, store: Store) -> Experiment:
    """Return an experiment whose transfer set is the files of a store, if the store keeps them; else the experiment."""
    if not store.samples.keeps_files:
        return experiment
    images = stored_images(store)
    order = (store.identity_of(SAMPLES) or {}).get("order", {})
    seed = {"seed": order["seed"]} if "seed" in order else {}
    given = InHand(images, name_of(images), {})
    table = of_thing(TransferSet, given, "transfer_set", order=order.get("kind", "as_is"), **seed)
    return experiment.model_copy(update={"transfer_set": table})


def describe_inputs(work: Workspace) -> str:
    """Compare the set that the inputs of a store come from, if they do; return the extent of the comparison in words.

    Raises as `check_samples`.
    """
    if not work.store.is_whole(SAMPLES):
        return ""
    if work.store.samples.inputs is not None or work.store.samples.keeps_files:
        return "the store holds the inputs; the transfer set was not read"
    return check_samples(work.store, work.rows)


def samples_identity(
    rows: TransferRows, theirs: Mapping[str, Any] | None, *, is_begun: bool
) -> dict[str, Any]:
    """Return the identity of the samples of a set in the form of those that are there.

    theirs: the identity in the store, if any; one of an earlier version lacks `made_by`. The source of the set's factory is
    compared for samples that are begun: one half would come from other code. Sealed ones are compared by their rows.
    """
    identity = rows.identity
    if CONCATENATED in (theirs or {}) and not is_begun:
        # No one set made it: it is compared by its rows.
        return {key: value for key, value in (theirs or {}).items() if key != "views"} | {
            "digest_of": rows.digest_of
        }
    if DECODING in (theirs or {}):
        # Of files in a store: a set that gives none is compared by its rows.
        identity[DECODING] = getattr(rows.dataset, DECODING, (theirs or {})[DECODING])
    made_by, written = identity.get("made_by"), (theirs or {}).get("made_by")
    if theirs is None or not isinstance(made_by, Mapping):
        return identity
    if not isinstance(written, Mapping):
        return {key: value for key, value in identity.items() if key != "made_by"}
    if not is_begun and written.get("source") != made_by.get("source"):
        log.warning("the source of the transfer set's factory has changed since the store was made")
        kept = {key: value for key, value in made_by.items() if key != "source"}
        identity["made_by"] = kept | ({"source": written["source"]} if "source" in written else {})
    return identity


def check_labels(
    rows: range | Int64[np.ndarray, " rows"],
    found: Int64[np.ndarray, " rows"],
    expected: Int64[np.ndarray, " rows"],
    source: Int64[np.ndarray, " rows"],
) -> None:
    """Refuse labels other than those of the store. Raises RowMismatch with the first.

    rows: of the store. source: index in the transfer set of each of these rows.
    """
    _check_column(rows, found, expected, source, "label", "{}")


def check_ids(rows: TransferRows, stored: Sequence[str] | None, which: range) -> None:
    """Refuse ids other than those of the store. Raises RowMismatch with the first.

    stored: ids of the rows `which` of the store; nothing is compared if the store or the set has none.
    """
    if stored is None or rows.ids is None:
        return
    source = rows.source[which.start : which.stop]
    ours, theirs = np.array([rows.ids[i] for i in source.tolist()], object), np.array(stored, object)
    _check_column(which, ours, theirs, source, "id", "{!r}")


def _check_column(
    rows: range | Int64[np.ndarray, " rows"],
    found: Shaped[np.ndarray, " rows"],
    expected: Shaped[np.ndarray, " rows"],
    source: Int64[np.ndarray, " rows"],
    column: str,
    shown: str,
    noun: str = "",
) -> None:
    """Compare a column. column: its name; empty for inputs. shown: format of a value. noun: words before the expected one."""
    bad = np.flatnonzero(found != expected)
    if len(bad):
        first = int(bad[0])
        where = f"row {rows[first]} (index {int(source[first])} of the transfer set)"
        raise RowMismatch(
            f"{where}: {column}" if column else where,
            expected=f"{noun}{shown.format(expected[first])}, as in the store",
            found=f"{shown.format(found[first])} ({len(bad)} of {len(rows)} rows that were compared differ)",
            remedy=_REMEDY,
        )


def check_names(
    store: Store,
    rows: TransferRows,
    remedy: str = "give the transfer set the classes of the store, or make a new store (another --out)",
) -> None:
    """Refuse class names in another order, or others. Numbers in the place of names are not compared. Raises SpecMismatch."""
    ours, theirs, numbers = rows.class_names, store.class_names, [str(c) for c in range(store.num_classes)]
    if ours is None or numbers in (ours, theirs):
        return
    for number, (own, other) in enumerate(zip(ours, theirs, strict=True)):
        if unicodedata.normalize("NFC", own) != unicodedata.normalize("NFC", other):
            raise SpecMismatch(
                f"{store.path}: {SAMPLES}/class_name",
                expected=f"{other!r} as class {number}, as in the store",
                found=f"{own!r}" + (f", which is class {theirs.index(own)} there" if own in theirs else ""),
                remedy=remedy,
            )


def _check_looked(
    rows: TransferRows,
    looked: Looked,
    labels: Int64[np.ndarray, " all"],
    digests: UInt64[np.ndarray, " all"],
    there: Shaped[np.ndarray, " all"] | None = None,
) -> None:
    """Compare what was read of a set with the columns of a store. Raises RowMismatch with the first row.

    labels, digests: of each row of the store. there: whether the store has the row; None if it has all.
    """
    row_of = np.argsort(rows.source)

    def by_row(indices: Any, values: Any) -> tuple[Any, Any, Any]:
        """Return rows of the store that it has, ascending, with their index in the set and the value read there."""
        at = row_of[indices]
        order = np.argsort(at)
        order = order if there is None else order[there[at[order]]]
        return at[order], indices[order], values[order]

    of_store, indices, read = by_row(looked.labelled, looked.labels)
    wrong = indices[read != labels[of_store]][:_REFETCHED]
    if len(wrong) and not looked.is_whole:
        wrong = np.sort(wrong)
        if np.array_equal(rows.look(wrong).labels, labels[row_of[wrong]]):
            # The set lists other labels than its items have. The items count.
            log.info("the labels that the transfer set lists are not those of its items")
            known = np.isin(indices, looked.indices)
            of_store, indices, read = of_store[known], indices[known], read[known]
    check_labels(of_store, read, labels[of_store], indices)
    of_store, indices, digested = by_row(looked.indices, looked.digests)
    _check_column(of_store, digested, digests[of_store], indices, "", "{:016x}", noun="an input with digest ")


def check_repeatable(examples: Examples) -> None:
    """Fetch some examples again, in another order and another thread, and from a set that is made anew; compare them.

    A set that is made anew takes memory and time. It is left out for sets of more than `_BUILT_TWICE_BYTES` of inputs, and
    for those with a fingerprint, of which the next run compares the whole. Raises BadDataError for other examples.
    """
    step = -(-len(examples) // _REPEATED)
    indices = list(range(0, len(examples), step))
    first, again = _fetched(examples, [indices]), list[tuple[int, int]]()
    errors: list[LogitStoreError] = []

    def fetch() -> None:
        try:
            again.extend(_fetched(examples, [[index] for index in reversed(indices)]))
        except LogitStoreError as error:
            errors.append(error)

    thread = threading.Thread(target=fetch, name="logitstore-repeat")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    _compare(examples, indices, first, again[::-1], "when it is fetched again")
    if examples.fingerprint is None and len(examples) * examples.first.nbytes <= _BUILT_TWICE_BYTES:
        other = examples.again()
        if len(other) != len(examples):
            raise _never_the_same(
                examples,
                "its examples",
                f"{len(examples)} examples",
                f"{len(other)} from the factory called again",
            )
        _compare(examples, indices, first, _fetched(other, [indices]), "from the factory called again")


def check_read_again(
    rows: TransferRows,
    which: range,
    digests: UInt64[np.ndarray, " rows"],
    labels: Int64[np.ndarray, " rows"],
) -> None:
    """Compare rows that are fetched for the teachers with what was read of the set before. Raises BadDataError.

    which: rows of the store. A set with a fingerprint was not read before.
    """
    if rows.fingerprint is not None:
        return
    looked, source = rows.looked, rows.source[which.start : which.stop]
    place = np.minimum(np.searchsorted(looked.indices, source), len(looked.indices) - 1)
    known = np.flatnonzero(looked.indices[place] == source)
    place = place[known]
    read = looked.labels[np.searchsorted(looked.labelled, looked.indices[place])]
    for name, before, now in (
        ("digest {:016x}", looked.digests[place], digests[known]),
        ("label {}", read, labels[known]),
    ):
        if len(bad := np.flatnonzero(before != now)):
            index = int(source[known[bad[0]]])
            again = f"{name.format(now[bad[0]])} when it is fetched again"
            raise _never_the_same(rows, f"example {index}", name.format(before[bad[0]]), again)


def _fetched(examples: Examples, batches: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Fetch some batches; return digest and label of each example."""
    pairs: list[tuple[int, int]] = []
    for indices in batches:
        inputs, labels = examples.fetch(indices)
        pairs += zip(digest_rows(inputs).tolist(), labels.tolist(), strict=True)
    return pairs


def _compare(
    examples: Examples,
    indices: Sequence[int],
    first: Sequence[tuple[int, int]],
    again: Sequence[tuple[int, int]],
    when: str,
) -> None:
    for index, one, other in zip(indices, first, again, strict=True):
        for name, before, now in zip(("digest {:016x}", "label {}"), one, other, strict=True):
            if before != now:
                raise _never_the_same(
                    examples, f"example {index}", name.format(before), f"{name.format(now)} {when}"
                )


def _never_the_same(examples: Examples, what: str, expected: str, found: str) -> BadDataError:
    return BadDataError(
        f"{examples.where}, {what}",
        expected=f"the same each time: {expected}",
        found=found,
        remedy="take random changes out of the data set, and seed what its factory draws; [cache] augment makes random views",
    )
