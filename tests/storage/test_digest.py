"""Digests: as the page defines them, for any memory layout, and changed by every change."""

from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from logitstore.storage.digest import digest_rows
from logitstore.storage.errors import BadDataError

DTYPES = ["uint8", "int64", "float16", "float32", "float64", "bool"]


@st.composite
def inputs(draw: st.DrawFn) -> NDArray[Any]:
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = (draw(st.integers(1, 3)), *draw(st.lists(st.integers(1, 4), max_size=3)))
    size = int(np.prod(shape))
    numbers = draw(st.lists(st.integers(0, 255), min_size=size, max_size=size))
    return np.array(numbers).reshape(shape).astype(dtype)


@given(inputs())
def test_the_page_says_which_bytes(rows: NDArray[Any]) -> None:
    spelled = {"uint8": "|u1", "bool": "|b1"}.get(rows.dtype.name, f"<{rows.dtype.kind}{rows.dtype.itemsize}")
    header = f"{spelled}\0{','.join(str(n) for n in rows.shape[1:])}\0".encode()
    little = rows.astype(rows.dtype.newbyteorder("<"))
    wanted = [xxhash.xxh3_64_intdigest(header + row.tobytes(), seed=0) for row in little]
    assert digest_rows(rows).tolist() == wanted
    assert digest_rows(rows).dtype == np.uint64


@given(inputs())
def test_memory_layout_and_byte_order_do_not_count(rows: NDArray[Any]) -> None:
    wanted = digest_rows(rows).tolist()
    assert digest_rows(np.asfortranarray(rows)).tolist() == wanted
    assert digest_rows(rows.astype(rows.dtype.newbyteorder(">"))).tolist() == wanted
    assert digest_rows([np.asarray(row) for row in rows]).tolist() == wanted
    assert digest_rows(np.repeat(rows, 2, axis=0)[::2]).tolist() == wanted


def test_dtype_shape_and_every_element_count() -> None:
    rows = np.arange(12, dtype=np.uint8).reshape(1, 3, 4)
    others = [rows.astype(np.int64), rows.astype(np.float32), rows.reshape(1, 4, 3), rows.reshape(1, 12)]
    for place in np.ndindex(rows.shape):
        changed = rows.copy()
        changed[place] ^= 1
        others.append(changed)
    found = [int(digest_rows(other)[0]) for other in [rows, *others]]
    assert len(set(found)) == len(found)


def test_rows_of_different_shapes() -> None:
    rows = [np.zeros(2, np.uint8), np.zeros((2, 2), np.float32), np.zeros((), np.int64)]
    assert digest_rows(rows).tolist() == [int(digest_rows([row])[0]) for row in rows]
    assert digest_rows([]).shape == (0,)


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(BadDataError) as caught:
        digest_rows([np.zeros(2), np.array("cat")])
    assert str(caught.value) == (
        "row 1: expected an input of a numeric dtype, found dtype <U3; let the transfer set return numeric numpy arrays"
    )


def test_values_that_a_mask_hides_are_refused() -> None:
    row = np.ma.masked_array([1.0, 2.0])
    assert (digest_rows(row[None]) == digest_rows(np.array([[1.0, 2.0]]))).all()  # control: nothing is hidden
    row[1] = np.ma.masked
    for values in (row[None], [row], [np.zeros(2), row]):
        with pytest.raises(BadDataError, match=r"inputs: .* found a masked array that hides 1 of 2 values"):
            digest_rows(values)
