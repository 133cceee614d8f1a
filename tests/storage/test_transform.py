"""The transform encoding: each row within its budget, whatever the calibration; the same bits in any division of the work.

The oracle shares no code with the product: it decodes by the formula of the format page and computes the KL in float64.
"""

from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.divergences import kl
from threadpoolctl import threadpool_limits

from logitstore.storage.encodings import refine, transform
from logitstore.storage.encodings.basis import Basis
from logitstore.storage.encodings.named import encoding_described, encoding_named
from logitstore.storage.encodings.products import TILE, one_thread, tiled_product
from logitstore.storage.encodings.refine import ESCAPED
from logitstore.storage.encodings.transform import Transform, escaped_alone, unzigzag, zigzag
from logitstore.storage.errors import BadLogitsError, ConfigError

CLASSES, FEATURES = 60, 9


def network(seed: int = 0, classes: int = CLASSES, features: int = FEATURES) -> Any:
    """Return a linear head: a function from a number of rows and a seed to logits."""
    random = np.random.default_rng(seed)
    weights, bias = random.standard_normal((features, classes)), random.standard_normal(classes)

    def logits(rows: int, seed: int = 1, scale: float = 2.0) -> NDArray[np.float32]:
        hidden = np.maximum(np.random.default_rng(seed).standard_normal((rows, features)), 0)
        return (scale * hidden @ weights + bias).astype(np.float32)

    return logits


def oracle(stored: dict[str, NDArray[Any]], encoding: Transform) -> NDArray[np.float64]:
    """Decode rows by the formula of the format page, in float64."""
    basis, codes = encoding.basis, stored["codes"].astype(np.int64)
    assert basis is not None
    signed = np.where(codes % 2 == 0, codes // 2, -(codes + 1) // 2)
    steps = basis.step.astype(np.float64) * 2.0 ** (-stored["refine"].astype(np.float64)[:, None] / 2)
    decoded: NDArray[np.float64] = (signed * steps) @ basis.basis.astype(np.float64) + basis.centre
    escaped = stored["refine"] == ESCAPED
    decoded[escaped] = stored["escape"][escaped] * float(
        encoding.arrays(decoded.shape[1])[3].attributes["scale_factor"]
    )  # type: ignore[arg-type]
    return decoded


def worst(exact: NDArray[Any], decoded: NDArray[Any], temperatures: tuple[float, ...]) -> float:
    return float(max(kl(exact, decoded, t).max() for t in temperatures))


def decoded_by_product(encoding: Transform, stored: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Decode as the reader does, which is given the escaped rows alone."""
    return encoding.decode(escaped_alone(stored))


@pytest.mark.parametrize("max_kl", [1e-1, 1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("temperatures", [(1.0, 2.0, 4.0, 8.0), (1.0,), (3.0, 20.0)])
def test_every_row_keeps_its_budget_and_its_largest_class(
    max_kl: float, temperatures: tuple[float, ...]
) -> None:
    logits = network()(500)
    encoding = Transform(max_kl, temperatures).calibrated(network()(200, seed=2), "calibration")
    stored = encoding.encode(logits, 0, "teacher")
    for decoded in (oracle(stored, encoding), decoded_by_product(encoding, stored)):
        assert worst(logits, decoded, temperatures) <= max_kl
        assert (decoded.argmax(axis=1) == logits.argmax(axis=1)).all()
    assert (stored["refine"] != ESCAPED).mean() > 0.9  # control: it is not the other encoding that keeps it
    # What is recorded is no less than what is true.
    recorded = stored["error"].astype(np.float64) ** 2 / (2 * np.square(temperatures))
    true = np.stack([kl(logits, oracle(stored, encoding), t) for t in temperatures], axis=1)
    assert (recorded >= true * (1 - 1e-3)).all()
    assert (recorded <= 1.2 * true + 3e-7).all()


@given(
    seed=st.integers(0, 1000),
    scale=st.sampled_from([0.01, 1.0, 30.0]),
    max_kl=st.sampled_from([1e-1, 1e-3]),
    kind=st.sampled_from(["noise", "other head", "one class", "ties", "wide"]),
)
@settings(max_examples=40, deadline=None)
def test_rows_unlike_the_calibration_cost_bytes_and_no_accuracy(
    seed: int, scale: float, max_kl: float, kind: str
) -> None:
    random = np.random.default_rng(seed)
    encoding = Transform(max_kl).calibrated(network()(100, seed=2), "calibration")
    rows = {
        "noise": lambda: scale * random.standard_normal((40, CLASSES)),
        "other head": lambda: network(seed=9)(40, seed, scale),
        "one class": lambda: np.where(
            np.arange(CLASSES) == random.integers(0, CLASSES, (40, 1)), 50 * scale, 0
        ),
        "ties": lambda: random.integers(0, 2, (40, CLASSES)) * scale,
        "wide": lambda: network()(40, seed, 200 * min(scale, 1.0)),
    }[kind]()
    logits = np.asarray(rows, np.float32)
    stored = encoding.encode(logits, 0, "teacher")
    for decoded in (oracle(stored, encoding), decoded_by_product(encoding, stored)):
        assert worst(logits, decoded, encoding.temperatures) <= max_kl
        assert (decoded.argmax(axis=1) == logits.argmax(axis=1)).all()


def divisions(rows: int) -> Iterator[list[slice]]:
    """Yield some ways to cut rows."""
    for size in (rows, TILE, 37, 1):
        yield [slice(first, first + size) for first in range(0, rows, size)]


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_bytes_in_any_division_and_number_of_threads(threads: int) -> None:
    logits = network(features=40)(300)
    encoding = Transform(1e-3).calibrated(network(features=40)(400, seed=2), "calibration")
    whole = encoding.encode(logits, 0, "teacher")
    with threadpool_limits(threads), mock.patch.object(transform, "_threads", lambda: threads):
        again = Transform(1e-3).calibrated(network(features=40)(400, seed=2), "calibration")
        assert again.basis is not None and encoding.basis is not None
        assert again.basis.digest == encoding.basis.digest
        assert again.basis.forward.tobytes() == encoding.basis.forward.tobytes()
        for parts in divisions(len(logits)):
            pieces = [encoding.encode(logits[part], part.start, "teacher") for part in parts]
            for name, values in whole.items():
                assert np.concatenate([piece[name] for piece in pieces]).tobytes() == values.tobytes()


def test_a_product_of_plain_shapes_would_not_be_the_same_bits() -> None:
    """Negative control: what the tiles exclude does happen."""
    random = np.random.default_rng(0)
    rows, matrix = (random.standard_normal(shape).astype(np.float32) for shape in ((257, 999), (999, 131)))
    with one_thread:
        tiled = [
            tiled_product(rows, matrix),
            np.concatenate([tiled_product(rows[i : i + 1], matrix) for i in range(257)]),
        ]
        plain = [rows @ matrix, np.concatenate([rows[i : i + 1] @ matrix for i in range(257)])]
    assert np.array_equal(*tiled)
    assert not np.array_equal(*plain)


def test_many_classes_need_no_matrix_of_classes() -> None:
    logits = network(classes=5000, features=20)
    encoding = Transform(1e-2).calibrated(logits(128, seed=2), "calibration")
    assert encoding.basis is not None
    assert encoding.basis.num_components <= 21
    stored = encoding.encode(logits(64), 0, "teacher")
    assert worst(logits(64), oracle(stored, encoding), encoding.temperatures) <= 1e-2


def steps_beyond_the_least(max_kl: float) -> float:
    """Return by how much `refine` is beyond the least that keeps budget and largest class: mean of rows that nearly tie."""
    logits = network()(5000)
    largest = np.sort(logits, axis=1)[:, -2:]
    logits = logits[np.argsort(largest[:, 1] - largest[:, 0])[:300]]
    encoding = Transform(max_kl).calibrated(network()(200, seed=2), "calibration")
    assert encoding.basis is not None
    stored = encoding.encode(logits, 0, "teacher")
    centred = logits - logits.max(axis=1, keepdims=True)
    with one_thread:
        projected = encoding.basis.project(centred)
    least = np.full(len(logits), 60)
    for finer in reversed(range(60)):
        steps = encoding.basis.step * np.float32(2 ** (-finer / 2))
        decoded = (np.rint(projected / steps) * steps) @ encoding.basis.basis + encoding.basis.centre
        kept = decoded.argmax(axis=1) == logits.argmax(axis=1)
        kept &= np.max([kl(logits, decoded, t) for t in encoding.temperatures], axis=0) <= max_kl
        least[kept] = finer
    used = stored["refine"] != ESCAPED
    assert used.mean() > 0.9
    return float((stored["refine"][used].astype(int) - least[used]).mean())


def test_a_row_that_lost_its_largest_class_is_tried_at_the_next_steps() -> None:
    with mock.patch.object(refine, "_NEAR", 0):
        control = steps_beyond_the_least(0.1)
    assert steps_beyond_the_least(0.1) < 0.6 * control


@pytest.mark.parametrize(("classes", "max_kl", "seed"), [(2, 1e-3, 0), (3, 1e-2, 1), (4, 1e-2, 1)])
def test_rows_of_few_classes_like_the_calibration_are_not_escaped(
    classes: int, max_kl: float, seed: int
) -> None:
    """Their coarse rows hardly reach the axis on which all classes move alike, and the others stand askew to it."""
    net = network(seed, classes, 12)
    calibration = net(100, seed=2, scale=1.0)
    encoding = Transform(max_kl).calibrated(calibration, "calibration")
    for logits in (calibration, net(450, scale=1.0)):
        assert (encoding.encode(logits, 0, "teacher")["refine"] != ESCAPED).all()
    with mock.patch.object(transform, "_CONSTANT", 0.0):
        without = Transform(max_kl).calibrated(calibration, "calibration")
    control = without.encode(calibration, 0, "teacher")["refine"] == ESCAPED
    assert control.mean() > 0.05


def test_rows_that_the_budget_lets_pass_are_noticed() -> None:
    """Negative control of the guarantee: without the refinement, rows are beyond it."""
    logits = network()(300)
    encoding = Transform(1e-3).calibrated(network()(200, seed=2), "calibration")
    with mock.patch.object(refine, "_MARGIN", 1e9), mock.patch.object(refine, "_LEAD", -np.inf):
        stored = encoding.encode(logits, 0, "teacher")
    assert worst(logits, oracle(stored, encoding), encoding.temperatures) > 1e-3


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        (np.zeros((50, CLASSES), np.float32), "50 rows of the same logits"),
        (network()(1), "1 rows of the same logits"),
        (np.full((50, CLASSES), np.nan, np.float32), "nan"),
        (np.where(np.arange(CLASSES) == 3, -np.inf, network()(50)).astype(np.float32), "-inf"),
    ],
)
def test_calibration_rows_that_make_no_basis_are_refused(rows: NDArray[np.float32], found: str) -> None:
    with pytest.raises(BadLogitsError) as caught:
        Transform(1e-2).calibrated(rows, "teacher 'wide', calibration")
    assert found in caught.value.found


def test_rows_that_no_code_reaches_are_refused() -> None:
    encoding = Transform(1e-3).calibrated(network()(100, seed=2), "calibration")
    with pytest.raises(
        BadLogitsError,
        match=r"row 5.* the reach of max_kl 0.001, found -[0-9.]+ \(.*; raise max_kl",
    ):
        logits = network()(9)
        logits[5, 3] = -1e5
        encoding.encode(logits, 0, "teacher")


def test_without_a_basis_nothing_is_encoded() -> None:
    with pytest.raises(
        ConfigError, match="expected calibration rows, from which the basis is made, found none"
    ):
        Transform(1e-2).encode(network()(5), 0, "teacher")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "found no max_kl"),
        ({"max_kl": 1e-2, "temperature": [1]}, "found temperature"),
        ({"max_kl": 0}, "max_kl: expected a positive number"),
        ({"max_kl": "1e-2"}, "max_kl: expected a positive number"),
        ({"max_kl": 1e-2, "temperatures": [0.5, 1]}, "ascending temperatures from 1 to 1000, found"),
        ({"max_kl": 1e-2, "temperatures": [2, 1]}, "ascending temperatures from 1 to 1000, found"),
        ({"max_kl": 1e-2, "temperatures": []}, "ascending temperatures from 1 to 1000, found"),
        ({"max_kl": 1e-2, "temperatures": 4}, "temperatures: expected a list, found 4"),
        ({"max_kl": 1e-2, "rows": 1}, "rows"),
        ({"max_kl": 1e-70}, "max_kl"),
    ],
)
def test_wrong_settings_are_refused(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        encoding_named({"transform": table})


def test_a_description_is_the_encoding_again() -> None:
    encoding = encoding_named(
        {"transform": {"max_kl": 1e-3, "temperatures": [1, 4], "rows": 512, "seed": 3, "peak": True}}
    )
    assert encoding_described(encoding.describe(), "spec") == encoding


@given(st.lists(st.integers(-32768, 32767)))
def test_zigzag_is_there_and_back(codes: list[int]) -> None:
    signed = np.array(codes, np.int32)
    assert unzigzag(zigzag(signed)).tolist() == codes
    assert (zigzag(signed) <= 2 * np.abs(signed)).all()


def test_the_projection_follows_from_what_is_stored() -> None:
    encoding = Transform(1e-3).calibrated(network()(200, seed=2), "calibration")
    assert encoding.basis is not None
    read = Basis(**{name: values.copy() for name, values in encoding.basis.arrays().items()})
    assert read.forward.tobytes() == encoding.basis.forward.tobytes()
    inside = read.basis.astype(np.float64) @ read.forward
    np.testing.assert_allclose(inside, np.eye(len(inside)), atol=1e-4)
