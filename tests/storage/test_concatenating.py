"""Stores whose rows are put into one: the bits of the sources, in order; or one line why they do not fit together."""

import itertools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from support import stores
from support.stores import Made, Teacher

import logitstore
from logitstore.pipeline.compress.stage import compress
from logitstore.storage.api import Store, create_store, open_store
from logitstore.storage.backends.local import Folder
from logitstore.storage.backends.staged import NewObject
from logitstore.storage.digest import digest_rows
from logitstore.storage.errors import (
    ConfigError,
    LogitStoreError,
    NameTaken,
    PartNotFound,
    RowMismatch,
    ShardCorrupt,
    SpecMismatch,
    StorageFull,
    StoreIncomplete,
)
from logitstore.storage.integrity.verify import verify
from logitstore.storage.sharing.concatenating import Concatenated, concat_stores

KINDS: Mapping[str, Teacher] = {
    "wide": Teacher(views=2),
    "exact": Teacher(encoding="float32", classes=(3, 0, 1, 2, 4)),
    "budget": Teacher(encoding={"max_kl": 1e-2}),
    "top": Teacher(encoding={"top_k": 2}),
}
"""A capture of each encoding that has no state."""
CLASSES = 5


@pytest.fixture(autouse=True)
def quick(without_fsync: None) -> None:
    """Bytes are compared here, not power cuts."""
    logging.getLogger("logitstore").setLevel(logging.ERROR)


def make(path: Path, rows: int, first: int = 0, teachers: Mapping[str, Teacher] = KINDS, **more: Any) -> Made:
    """Make a store of rows, with ids from a number on."""
    inputs = stores.some_inputs(rows + first)[first:]
    if more.pop("keep", True):
        more |= {"inputs": inputs, "store_inputs": True, "ids": [f"row-{first + row}" for row in range(rows)]}
    else:
        more |= {"digests": digest_rows(inputs)}
    labels = (np.arange(rows, dtype=np.int64) + first) % CLASSES
    names = [f"class {number}" for number in range(CLASSES)]
    store = create_store(
        path, num_classes=CLASSES, labels=labels, block_rows=8, **{"class_names": names, **more}
    )
    logits = {}
    for number, (name, teacher) in enumerate(teachers.items()):
        columns = CLASSES if teacher.classes is None else len(teacher.classes)
        logits[name] = stores.some_logits(teacher.views, rows, columns, seed=100 * first + number)
        stores.write_capture(store, name, logits[name], teacher, inputs)
    return Made(path, store, inputs, labels, logits)


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two stores, of 13 and of 9 rows; they are not changed."""
    folder = tmp_path_factory.mktemp("halves")
    make(folder / "a.zarr", 13)
    make(folder / "b.zarr", 9, 13)
    return folder / "a.zarr", folder / "b.zarr"


def concat(sources: Any, path: Path, **more: Any) -> Concatenated:
    return concat_stores(sources, path, **more)


def in_one_line(error: BaseException) -> str:
    assert isinstance(error, LogitStoreError)
    assert "\n" not in str(error) and len(str(error)) < 700
    return str(error)


def stored(store: Store, name: str, view: int) -> dict[str, Any]:
    """Return every array of a capture as it is stored."""
    reader, part = store.teachers[name].reader, store.teachers[name].part
    blocks = [array for array, layout in part.layouts.items() if layout.is_block_array]
    return {array: reader.read(array, slice(None), view) for array in blocks}


def check_rows(sources: Any, path: Path) -> None:
    """Compare every array of a store with those of its sources, bit for bit."""
    olds, new = [open_store(source) for source in sources], open_store(path)
    for array in ("labels", "digests"):
        joined = np.concatenate([getattr(old.samples, array) for old in olds])
        assert getattr(new.samples, array).tobytes() == joined.tobytes()
    if new.samples.ids is not None:
        assert new.samples.ids == list(itertools.chain.from_iterable(old.samples.ids or [] for old in olds))
    if new.samples.inputs is not None:
        pieces = [inputs[:] for old in olds if (inputs := old.samples.inputs) is not None]
        assert new.samples.inputs[:].tobytes() == np.concatenate(pieces).tobytes()
    assert new.class_names == olds[0].class_names
    for name, capture in new.teachers.items():
        assert np.array_equal(capture.classes, olds[0].teachers[name].classes)
        for view in range(capture.num_views):
            pieces_of = [stored(old, name, view) for old in olds]
            for array, values in stored(new, name, view).items():
                joined = np.concatenate([pieces[array] for pieces in pieces_of])
                assert (values.dtype, values.tobytes()) == (joined.dtype, joined.tobytes()), (name, array)


# The new store


def test_the_rows_are_those_of_the_sources_bit_for_bit(halves: tuple[Path, Path], tmp_path: Path) -> None:
    planned = concat(halves, tmp_path / "both.zarr", dry_run=True)
    assert not (tmp_path / "both.zarr").exists() and planned.digest is None
    before = [stores.tree(path) for path in halves]
    done = concat(halves, tmp_path / "both.zarr")
    check_rows(halves, tmp_path / "both.zarr")
    assert [stores.tree(path) for path in halves] == before
    store = open_store(tmp_path / "both.zarr")
    assert done.digest == store.digest and list(store.teachers) == list(KINDS)
    assert (done.num_rows, done.rows, planned.rows) == (22, (13, 9), (13, 9))
    assert planned.bytes == done.bytes > 0
    assert verify(tmp_path / "both.zarr", deep=True).exit_code == 0
    again = concat(halves, tmp_path / "both.zarr")
    assert again.digest == done.digest and not any(part.made for part in again.parts)
    assert logitstore.concat_stores is concat_stores


def test_the_new_store_names_its_sources(halves: tuple[Path, Path], tmp_path: Path) -> None:
    concat(halves, tmp_path / "both.zarr")
    store, olds = open_store(tmp_path / "both.zarr"), [open_store(path) for path in halves]
    samples = store.samples.spec
    assert samples.identity["concatenated"] == [old.samples.digest for old in olds]
    assert samples.notes["stores"] == [old.digest for old in olds]
    assert store.teachers["top"].provenance["concatenated"] == [old.teachers["top"].digest for old in olds]
    assert store.teachers["top"].provenance["teacher"] == {"name": "top"}


def test_its_bytes_are_those_of_a_store_that_was_written_at_once(tmp_path: Path) -> None:
    """Shards and records do not tell where the rows come from."""
    a, b = make(tmp_path / "a.zarr", 16), make(tmp_path / "b.zarr", 16, 16)
    with mock.patch("logitstore.storage.sharing.concatenating.plan_block_rows", lambda rows, size: 8):
        concat([a.path, b.path], tmp_path / "both.zarr")
    for name in KINDS:
        for array in ("logits", "peak", "seen"):
            for shard in (tmp_path / f"a.zarr/teachers/{name}/{array}").glob("c.0.0*"):
                assert (
                    shard.read_bytes()
                    == (tmp_path / f"both.zarr/teachers/{name}/{array}/{shard.name}").read_bytes()
                )


def test_three_stores_and_one_that_was_concatenated(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.zarr" for number in range(3)]
    for number, path in enumerate(paths):
        make(path, 5 + number, 10 * number, {"wide": Teacher()})
    concat(paths[:2], tmp_path / "two.zarr")
    concat([tmp_path / "two.zarr", paths[2]], tmp_path / "nested.zarr")
    concat(paths, tmp_path / "three.zarr")
    check_rows(paths, tmp_path / "nested.zarr")
    check_rows(paths, tmp_path / "three.zarr")
    nested, three = (open_store(tmp_path / f"{name}.zarr").samples for name in ("nested", "three"))
    assert nested.spec.identity["numbered"] == three.spec.identity["numbered"] == [5, 6, 7]
    assert np.array_equal(nested.source, np.arange(18)) and np.array_equal(three.source, np.arange(18))


def test_some_captures_alone(halves: tuple[Path, Path], tmp_path: Path) -> None:
    concat(halves, tmp_path / "both.zarr", teachers=["top", "wide"])
    assert list(open_store(tmp_path / "both.zarr").teachers) == ["wide", "top"]
    concat(halves, tmp_path / "both.zarr")
    check_rows(halves, tmp_path / "both.zarr")
    assert verify(tmp_path / "both.zarr", deep=True).exit_code == 0


def test_rows_without_ids_names_and_inputs(tmp_path: Path) -> None:
    for number in range(2):
        make(tmp_path / f"{number}.zarr", 5, 5 * number, {"wide": Teacher()}, keep=False, class_names=None)
    paths = [tmp_path / "0.zarr", tmp_path / "1.zarr"]
    concat(paths, tmp_path / "both.zarr")
    check_rows(paths, tmp_path / "both.zarr")


def test_ids_are_as_wide_as_the_longest(tmp_path: Path) -> None:
    make(tmp_path / "a.zarr", 5, 0, {})
    make(tmp_path / "b.zarr", 5, 1000, {})
    concat([tmp_path / "a.zarr", tmp_path / "b.zarr"], tmp_path / "both.zarr")
    check_rows([tmp_path / "a.zarr", tmp_path / "b.zarr"], tmp_path / "both.zarr")


def test_a_stream_of_it_makes_the_views_that_the_teachers_saw(tmp_path: Path) -> None:
    augmented = {"wide": Teacher(views=2, augmented=True)}
    made = [make(tmp_path / f"{number}.zarr", 7, 7 * number, augmented) for number in range(2)]
    concat([one.path for one in made], tmp_path / "both.zarr")
    store = open_store(tmp_path / "both.zarr")
    stream = store.stream(batch_size=3, views="all", augment=stores.augment, seed=1)
    rows = np.concatenate([batch.rows for batch in stream])
    assert sorted(rows.tolist()) == sorted([*range(14)] * 2)  # each was compared with its digest
    for view in (0, 1):
        for batch in store.stream(batch_size=14, views=view, augment=stores.augment, shuffle=False):
            shown = [
                one.inputs if view == 0 else stores.augment(one.inputs, view, np.arange(7)) for one in made
            ]
            assert np.array_equal(batch.inputs, np.concatenate(shown))


@pytest.mark.parametrize(
    ("factory", "views", "is_refused"),
    [
        ("logitstore.pipeline.augment:mixup", 2, True),
        ("logitstore.pipeline.augment.mixing:Cutmix", 2, True),
        ("logitstore.pipeline.augment:mixup", 1, False),
        ("logitstore.pipeline.augment:shift", 2, False),
    ],
)
def test_mixtures_which_cannot_be_made_again_are_refused(
    tmp_path: Path, factory: str, views: int, is_refused: bool
) -> None:
    """Take the last two, which are negative controls: no view of theirs is a mixture."""
    teacher = Teacher(views=views, augmented=True)
    augmentation = {**stores.AUGMENTATION, "factory": factory}
    for number in range(2):
        made = make(tmp_path / f"{number}.zarr", 7, 7 * number, {"wide": Teacher()})
        logits = stores.some_logits(views, 7, CLASSES, seed=number)
        origin = {"teacher": {"name": "mixed"}, "augmentation": augmentation}
        stores.write_capture(made.store, "mixed", logits, teacher, made.inputs, origin)
    paths = [tmp_path / "0.zarr", tmp_path / "1.zarr"]
    if is_refused:
        with pytest.raises(SpecMismatch, match=f"found mixtures of rows, by .*{factory}") as caught:
            concat(paths, tmp_path / "both.zarr")
        in_one_line(caught.value)
        assert not (tmp_path / "both.zarr").exists()
        concat(paths, tmp_path / "both.zarr", teachers=["wide"])
    else:
        concat(paths, tmp_path / "both.zarr")


# Encodings with a state


def test_captures_in_one_basis_are_taken_and_others_refused(tmp_path: Path) -> None:
    paths = [tmp_path / "a.zarr", tmp_path / "b.zarr"]
    for number, path in enumerate(paths):
        make(path, 12, 12 * number, {"wide": Teacher(encoding="float32")})
    calibration = stores.some_logits(1, 24, CLASSES, seed=9)[0]
    wish = {"transform": {"max_kl": 1e-3}}
    for path in paths:
        store = open_store(path)
        with store.capture(
            "same", provenance={"by": "us"}, encoding=wish, calibration=calibration
        ) as capture:
            for rows in capture.missing_blocks():
                capture.write(rows, store.teachers["wide"].read(rows))
        compress(store, "wide", "own", wish)
    with pytest.raises(
        SpecMismatch, match=r"teachers/own: expected .*; concatenate the capture that it was made from"
    ) as caught:
        concat(paths, tmp_path / "both.zarr")
    in_one_line(caught.value)
    assert not (tmp_path / "both.zarr").exists()
    concat(paths, tmp_path / "both.zarr", teachers=["wide", "same"])
    check_rows(paths, tmp_path / "both.zarr")
    store = open_store(tmp_path / "both.zarr")
    joined = np.concatenate([open_store(path).teachers["same"].read(slice(None)) for path in paths])
    assert np.array_equal(store.teachers["same"].read(slice(None)), joined)
    compress(store, "wide", "own", wish)  # the remedy
    assert verify(tmp_path / "both.zarr", deep=True).exit_code == 0


def test_a_compressed_capture_was_made_from_the_one_of_the_new_store(tmp_path: Path) -> None:
    paths = [tmp_path / "a.zarr", tmp_path / "b.zarr"]
    for number, path in enumerate(paths):
        compress(
            make(path, 9, 9 * number, {"wide": Teacher(encoding="float32")}).store,
            "wide",
            "kl",
            {"max_kl": 1e-2},
        )
    concat(paths, tmp_path / "both.zarr")
    check_rows(paths, tmp_path / "both.zarr")
    store = open_store(tmp_path / "both.zarr")
    assert store.teachers["kl"].provenance["derived_from"]["seal"] == store.teachers["wide"].digest
    assert not compress(store, "wide", "kl", {"max_kl": 1e-2}).made


# Stores that do not fit together


def other(tmp_path: Path, **teachers: Teacher) -> Path:
    make(tmp_path / "other.zarr", 9, 50, teachers)
    return tmp_path / "other.zarr"


def refused(sources: Any, tmp_path: Path, error: type[Exception], said: str, **more: Any) -> None:
    with pytest.raises(error, match=said) as caught:
        concat(sources, tmp_path / "both.zarr", **more)
    in_one_line(caught.value)
    assert not (tmp_path / "both.zarr").exists()


def test_an_id_in_two_stores_is_refused(halves: tuple[Path, Path], tmp_path: Path) -> None:
    make(tmp_path / "c.zarr", 9, 10)
    sources = [halves[0], tmp_path / "c.zarr"]
    refused(
        sources,
        tmp_path,
        RowMismatch,
        "c.zarr: id 'row-10': expected ids that .*a.zarr does not have, found 3 of its ids there",
    )
    concat(sources, tmp_path / "both.zarr", allow_duplicates=True)
    check_rows(sources, tmp_path / "both.zarr")


def test_a_store_twice_is_refused(halves: tuple[Path, Path], tmp_path: Path) -> None:
    refused([halves[0]] * 2, tmp_path, RowMismatch, "found the same samples")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"wide": Teacher()},
            "teachers/wide: expected views|logits as float16 .5,., 2 views.* found float16 .5,., 1 view",
        ),
        ({"wide": Teacher(views=2, encoding="float32")}, "encoding.kind = 'float16'"),
        ({"wide": Teacher(views=2, augmented=True)}, "augmentation"),
        ({"wide": Teacher(views=2, classes=(4, 3, 2, 1, 0))}, "expected its classes, as in"),
        ({"wide": Teacher(views=2, encoding={"max_kl": 1e-1})}, "encoding.kind"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_captures_that_differ_are_refused(
    halves: tuple[Path, Path], tmp_path: Path, changes: dict[str, Teacher], said: str
) -> None:
    refused([halves[0], other(tmp_path, **changes)], tmp_path, SpecMismatch, said, teachers=["wide"])


def test_another_network_of_the_same_name_is_refused(tmp_path: Path) -> None:
    for number, weights in enumerate(("a", "b")):
        made = make(tmp_path / f"{number}.zarr", 9, 9 * number, {})
        origin = {"teacher": {"name": "wide", "weights": weights}, "batch_size": number + 1}
        stores.write_capture(
            made.store, "wide", stores.some_logits(1, 9, CLASSES), Teacher(), made.inputs, origin
        )
        alike = {"teacher": {"name": "wide"}, "batch_size": number + 1, "transfer_set": weights}
        stores.write_capture(
            made.store, "alike", stores.some_logits(1, 9, CLASSES), Teacher(), made.inputs, alike
        )
    paths = [tmp_path / "0.zarr", tmp_path / "1.zarr"]
    refused(
        paths,
        tmp_path,
        SpecMismatch,
        "1.zarr: teachers/wide: expected teacher.weights = 'a', as in .*0.zarr, found 'b'",
    )
    concat(paths, tmp_path / "both.zarr", teachers=["alike"])
    check_rows(paths, tmp_path / "both.zarr")
    assert (
        not {"batch_size", "transfer_set"}
        & open_store(tmp_path / "both.zarr").teachers["alike"].provenance.keys()
    )


def test_captures_that_one_lacks_are_refused(halves: tuple[Path, Path], tmp_path: Path) -> None:
    path = other(tmp_path, wide=Teacher(views=2))
    refused([halves[0], path], tmp_path, PartNotFound, "other.zarr: teachers/exact: expected one of")
    refused(
        [path, halves[0]],
        tmp_path,
        PartNotFound,
        "other.zarr: teachers/exact: expected the captures of every source",
    )
    refused(halves, tmp_path, PartNotFound, "'nobody'", teachers=["nobody"])
    with open_store(path).capture(
        "top", provenance={"teacher": {"name": "top"}}, encoding={"top_k": 2}
    ) as capture:
        capture.write(next(capture.missing_blocks()), stores.some_logits(1, 8, CLASSES)[0])
    refused([halves[0], path], tmp_path, StoreIncomplete, "unfinished", teachers=["top"])


def test_samples_that_differ_are_refused(halves: tuple[Path, Path], tmp_path: Path) -> None:
    made = {"classes": {"num_classes": 6, "class_names": None}, "names": {"class_names": list("vwxyz")}}
    for name, more in made.items():
        create_store(
            tmp_path / f"{name}.zarr",
            labels=[0] * 3,
            ids=list("abc"),
            digests=np.zeros(3, np.uint64),
            **{"num_classes": 5, **more},
        )
    refused(
        [halves[0], tmp_path / "classes.zarr"],
        tmp_path,
        SpecMismatch,
        "samples|expected 5 classes",
        teachers=[],
    )
    refused(
        [halves[0], tmp_path / "names.zarr"], tmp_path, SpecMismatch, "expected input, as in", teachers=[]
    )


@pytest.mark.parametrize(
    ("sources", "said"), [([], "found 0"), (["a.zarr"], "found 1"), ("a.zarr", "found 'a.zarr'")]
)
def test_fewer_than_two_stores_are_refused(tmp_path: Path, sources: Any, said: str) -> None:
    refused(sources, tmp_path, ConfigError, said)


def test_a_place_that_is_taken_is_left_as_it_is(halves: tuple[Path, Path], tmp_path: Path) -> None:
    path = other(tmp_path, wide=Teacher())
    before = stores.tree(path)
    with pytest.raises(NameTaken):
        concat(halves, path)
    make(tmp_path / "rows.zarr", 22, 70, {}, keep=False)
    with pytest.raises((NameTaken, SpecMismatch)) as caught:
        concat(halves, tmp_path / "rows.zarr")
    in_one_line(caught.value)
    with pytest.raises(NameTaken):
        concat(halves, halves[0])
    assert stores.tree(path) == before


def test_a_damaged_source_is_refused(halves: tuple[Path, Path], tmp_path: Path) -> None:
    make(tmp_path / "c.zarr", 9, 70, {"wide": Teacher(views=2)})
    stores.flip(tmp_path / "c.zarr/teachers/wide/logits/c.0.0.0", 100)
    with pytest.raises(ShardCorrupt):
        concat([halves[0], tmp_path / "c.zarr"], tmp_path / "both.zarr", teachers=["wide"])
    assert "wide" not in open_store(tmp_path / "both.zarr").teachers


# Kills, and a full disk


def test_a_full_disk_is_refused_before_anything_is_written(halves: tuple[Path, Path], tmp_path: Path) -> None:
    with mock.patch.object(Folder, "free_bytes", lambda folder: 1000):
        refused(halves, tmp_path, StorageFull, "expected room for .* found 1,000 free bytes")


class Killed(BaseException):
    """Raised in the place of a kill."""


def test_a_call_that_is_killed_anywhere_ends_in_the_same_bytes(
    halves: tuple[Path, Path], tmp_path: Path
) -> None:
    choice: dict[str, Any] = {"teachers": ["wide", "budget"]}
    concat(halves, tmp_path / "whole.zarr", **choice)
    whole, sources = stores.tree(tmp_path / "whole.zarr"), [stores.tree(path) for path in halves]
    publish = NewObject.publish
    for number in range(0, 200, 13):
        left = [number]

        def counted(new: NewObject, left: list[int] = left) -> bool:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return publish(new)

        path = tmp_path / f"{number}.zarr"
        with mock.patch.object(NewObject, "publish", counted):
            try:
                concat(halves, path, **choice)
                break
            except Killed:
                pass
        assert concat(halves, path, **choice).digest == open_store(tmp_path / "whole.zarr").digest
        assert stores.tree(path) == whole, number
    assert number > 40
    assert [stores.tree(path) for path in halves] == sources
