"""Encodings: all keep to one interface, and a description that is read back gives the same encoding."""

import json
import re
from typing import Any

import numpy as np
import pytest
from support import stores

from logitstore.storage.encodings.encoding import Encoding
from logitstore.storage.encodings.error_budget import ErrorBudget
from logitstore.storage.encodings.named import encoding_described, encoding_named
from logitstore.storage.encodings.top_k import TopK
from logitstore.storage.errors import ConfigError, UnsupportedFeature
from logitstore.storage.format.constants import TEMPERATURES
from logitstore.storage.format.documents import canonical_json
from logitstore.storage.format.layouts import DIMENSIONS, REQUIRED, dtypes_of

NAMES: list[Any] = [
    "float16",
    "float32",
    {"max_kl": 1e-3},
    {"max_kl": 1e-2, "min_temperature": 2},
    {"max_kl": 1},
    {"top_k": 3},
    ErrorBudget(1e-2, 1.5, 1e-3, "uint8"),
    ErrorBudget(1e-5, 1.0, 0.0, "uint16", 4),
    TopK(20),
]
LOGITS = stores.some_logits(1, 50, 20)[0]


@pytest.fixture(params=NAMES, ids=str)
def encoding(request: pytest.FixtureRequest) -> Encoding:
    return encoding_named(request.param)


def test_an_encoding_is_one(encoding: Encoding) -> None:
    assert isinstance(encoding, Encoding)
    assert encoding_named(encoding) is encoding


def test_what_a_spec_says_of_it_makes_the_same_again(encoding: Encoding) -> None:
    """By JSON, as a store has it, and with keys that a later version may add."""
    described = json.loads(canonical_json(encoding.describe()))
    for found in (described, {**described, "later": [1]}):
        again = encoding_described(found, "x")
        assert again == encoding
        assert again.describe() == encoding.describe()
    assert described["kind"] == encoding.kind


def test_a_description_of_another_encoding_is_another(encoding: Encoding) -> None:
    others = [encoding_named(name) for name in NAMES]
    assert sum(other.describe() == encoding.describe() for other in others) == 1


def test_the_arrays_are_those_that_it_gives(encoding: Encoding) -> None:
    """Names, dtypes and shapes, of the format's."""
    stored = encoding.encode(LOGITS, 0, "x")
    specs = {spec.name: spec for spec in encoding.arrays(20)}
    assert set(stored) == set(specs)
    assert set(specs) | {"seen", "classes"} == REQUIRED[encoding.form] == set(DIMENSIONS[encoding.form])
    assert set(encoding.decoded_from) <= set(specs)
    for name, spec in specs.items():
        assert stored[name].shape == (50, *spec.row_shape)
        assert stored[name].dtype == np.dtype(spec.dtype)
        assert spec.dtype in dtypes_of(encoding.form, name)


def test_what_it_decodes_is_centred_and_as_near_as_it_says(encoding: Encoding) -> None:
    stored = encoding.encode(LOGITS, 0, "x")
    assert np.array_equal(stored["peak"], LOGITS.max(axis=1))
    decoded_from = {name: stored[name] for name in encoding.decoded_from}
    for temperature in (1.0, 2.0, 20.0):
        decoded = encoding.decode(decoded_from, 20, temperature)
        assert decoded.dtype == np.float32
        assert (decoded.max(axis=1) == 0).all()
        if encoding.is_dense:
            assert np.array_equal(decoded, encoding.decode(decoded_from, 20))
        p, q = (stores.softmax(z, temperature) for z in (LOGITS, decoded))
        kl = (p * (np.log(p) - np.log(q))).sum(axis=1)
        bound = encoding.bound(temperature)
        if bound is not None and temperature >= 2:
            assert kl.max() <= bound + 1e-12
        if encoding.scale is not None:
            codes = stored["logits"].astype(np.float32)
            assert np.array_equal(codes * np.float32(encoding.scale), decoded)


def test_who_has_an_error_records_it_and_who_has_a_bound_says_it() -> None:
    found = {}
    for name in NAMES[:6]:
        encoding = encoding_named(name)
        arrays = {spec.name: spec for spec in encoding.arrays(20)}
        if "error" in arrays:
            assert arrays["error"].attributes == {"temperature": list(TEMPERATURES)}
        found[str(name)] = ("error" in arrays, encoding.bound(2.0))
    assert found == {
        "float16": (False, None),
        "float32": (False, 0.0),
        "{'max_kl': 0.001}": (True, pytest.approx(1e-3 / 4)),
        "{'max_kl': 0.01, 'min_temperature': 2}": (True, pytest.approx(1e-2)),
        "{'max_kl': 1}": (True, pytest.approx(0.25)),
        "{'top_k': 3}": (True, None),
    }


@pytest.mark.parametrize(
    "name",
    [
        "float64",
        "bfloat16",
        "error-budget",
        "",
        None,
        16,
        {},
        {"kind": "float16"},
        {"top_k": 3, "max_kl": 1e-3},
        {"max_kl": 1e-3, "temperature": 1.0},
        {"min_temperature": 1.0},
        ["float16"],
    ],
    ids=str,
)
def test_what_names_none_is_told_which_there_are(name: Any) -> None:
    message = "encoding: expected 'float16', 'float32', { transform = { max_kl = 1e-3 } } (with temperatures, 1, 2, 4 and 8"
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        encoding_named(name)
    assert f"found {name!r}" in str(caught.value)


@pytest.mark.parametrize("value", [True, "1e-3", None, [1e-3]])
@pytest.mark.parametrize("key", ["max_kl", "min_temperature"])
def test_what_is_no_number_is_no_budget(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"encoding: {key}: expected a positive number, found"):
        encoding_named({"max_kl": 1e-3, key: value})


@pytest.mark.parametrize("shift", range(16))
def test_every_shift_that_leaves_a_code_can_be_described(shift: int) -> None:
    for dtype, most in (("uint16", 16), ("uint8", 8)):
        if shift < most:
            encoding = ErrorBudget(1e-2, dtype=dtype, shift=shift)
            assert encoding_described(encoding.describe(), "x") == encoding
            assert encoding.most_codes >= 1


def test_a_step_of_another_digit_is_not_believed() -> None:
    """The bound follows from the step; a spec that says another one than its budget allows is refused."""
    description = ErrorBudget(1e-3).describe()
    step = float(np.nextafter(np.float32(description["step"]), np.float32(1)))  # type: ignore[arg-type]
    with pytest.raises(UnsupportedFeature, match="x: expected one of the encodings of this version"):
        encoding_described({**description, "step": step}, "x")
