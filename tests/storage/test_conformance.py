"""Readers of Zarr v3: all see the same bits, and the page suffices to write a reader.

Five readers that know nothing of logitstore, and a sixth, below, made of json, numpy and three codecs of numcodecs
(crc32c, and zstd and blosc for codes) and written from docs/format-v1.md.
"""

import inspect
import json
import re
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import pytest
import tensorstore
import xarray
import zarr
from numcodecs.blosc import Blosc
from numcodecs.checksum32 import CRC32C
from numcodecs.zstd import Zstd
from numpy.typing import NDArray
from support import stores
from support.tree import ROOT

from logitstore.storage.api import open_store
from logitstore.storage.digest import digest_rows
from logitstore.storage.encodings.basis import Basis
from logitstore.storage.encodings.error_budget import ErrorBudget
from logitstore.storage.encodings.named import encoding_named
from logitstore.storage.encodings.transform import Transform
from logitstore.storage.format.constants import CARD_FILE

pytestmark = pytest.mark.filterwarnings("ignore:Object at __logitstore__ is not recognized")

Arrays = dict[str, NDArray[Any]]


# The independent reader


def checked(data: bytes) -> bytes:
    """Bytes without the crc32c at their end, which must be right."""
    return bytes(CRC32C(location="end").decode(data))


def read_array(folder: Path) -> NDArray[Any]:
    """An array of a store, by json, numpy, a crc32c and what chunks are made smaller by."""
    meta = json.loads((folder / "zarr.json").read_bytes())
    fill = np.nan if meta["fill_value"] == "NaN" else meta["fill_value"]
    dtype = np.dtype(meta["data_type"]).newbyteorder("<")
    out = np.full(meta["shape"], fill, dtype)
    outer = meta["chunk_grid"]["configuration"]["chunk_shape"]
    codec = meta["codecs"][0]
    inner = codec["configuration"]["chunk_shape"] if codec["name"] == "sharding_indexed" else outer
    for place in np.ndindex(*(-(-n // c) for n, c in zip(out.shape, outer, strict=True))):
        data = (folder / f"c.{'.'.join(map(str, place))}").read_bytes()
        spots = [tuple(o * c for o, c in zip(place, outer, strict=True))]
        pieces, order = [checked(data)] if inner is outer else [], list(range(len(inner)))
        if inner is not outer:
            parts = [o // i for o, i in zip(outer, inner, strict=True)]
            size = int(np.prod(parts))
            index = np.frombuffer(checked(data[-16 * size - 4 :]), "<u8").reshape(size, 2).tolist()
            here = [(s, o, n) for s, (o, n) in zip(np.ndindex(*parts), index, strict=True) if n != 2**64 - 1]
            chain = {c["name"]: c.get("configuration", {}) for c in codec["configuration"]["codecs"]}
            smaller = set(chain) - {"transpose", "bytes", "crc32c"}
            order = chain.get("transpose", {}).get("order", list(range(len(inner))))
            whole = {"zstd": Zstd().decode, "blosc": Blosc().decode}[smaller.pop()] if smaller else bytes
            pieces = [bytes(whole(checked(data[offset : offset + length]))) for _, offset, length in here]
            spots = [tuple(b + i * c for b, i, c in zip(spots[0], s, inner, strict=True)) for s, _, _ in here]
        for spot, piece in zip(spots, pieces, strict=True):
            target = out[tuple(slice(b, b + c) for b, c in zip(spot, inner, strict=True))]
            lying = np.frombuffer(piece, dtype).reshape([inner[axis] for axis in order])
            target[...] = lying.transpose(np.argsort(order))[tuple(map(slice, target.shape))]
    return out


# The store, and what is in it

STORES = {
    "bytes, names, a last block that is not full": {"rows": 37, "block_rows": 8},
    "floats, no names, whole blocks": {
        "rows": 32,
        "block_rows": 16,
        "input_dtype": "float32",
        "names": False,
    },
    "no inputs, one row": {"rows": 1, "block_rows": 1024, "store_inputs": False},
    "several chunks a shard": {"rows": 4500, "block_rows": 2048, "input_dtype": "float16", "names": False},
}


ENCODED: dict[str, Any] = {
    "codes": {"max_kl": 1e-3},
    "bytes": ErrorBudget(1e-1, dtype="uint8"),
    "shifted": ErrorBudget(1e-4, shift=2),
    "largest": {"top_k": 2},
    "components": Transform(1e-2, (1.0, 4.0)).calibrated(stores.some_logits(1, 3, 5)[0], "components"),
}
TEACHERS = {
    "wide": stores.Teacher(views=2),
    "deep": stores.Teacher(views=2, encoding="float32"),
    **{name: stores.Teacher(views=2, encoding=encoding) for name, encoding in ENCODED.items()},
}


@pytest.fixture(scope="module", params=STORES, ids=lambda name: name.replace(" ", "-"))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Arrays]:
    """A store, and every array of it by its path, from what went in."""
    path = tmp_path_factory.mktemp("conformance") / "store.zarr"
    wanted = STORES[request.param]
    made = stores.make(path, teachers=TEACHERS, **wanted)  # type: ignore[arg-type]
    rows = len(made.labels)
    arrays: Arrays = {
        "samples/source": np.arange(rows),
        "samples/digest": digest_rows(made.inputs),
        "samples/label": made.labels,
    }
    if wanted.get("store_inputs", True):
        arrays["samples/input"] = made.inputs
    if wanted.get("names", True):
        arrays["samples/id"] = padded([f"row-{row}" for row in range(rows)])
        arrays["samples/class_name"] = padded([f"clàss {c}" for c in range(5)])
    for name, dtype in (("wide", "float16"), ("deep", "float32")):
        raw = made.logits[name]
        arrays[f"teachers/{name}/logits"] = (raw - raw.max(axis=2, keepdims=True)).astype(dtype)
        arrays[f"teachers/{name}/peak"] = raw.max(axis=2)
        arrays[f"teachers/{name}/seen"] = np.stack([arrays["samples/digest"]] * 2)
        arrays[f"teachers/{name}/classes"] = np.arange(5)
    for name, encoding in ENCODED.items():
        views = [encoding_named(encoding).encode(view, 0, name) for view in made.logits[name]]
        for array in views[0]:
            arrays[f"teachers/{name}/{array}"] = np.stack([view[array] for view in views])
        arrays[f"teachers/{name}/seen"] = arrays["teachers/wide/seen"]
        arrays[f"teachers/{name}/classes"] = arrays["teachers/wide/classes"]
    for name, values in components().arrays().items():
        arrays[f"teachers/components/{name}"] = values
    for name, array in stores.add_clustering(made.store).items():
        arrays[f"clusters/wide-2x2/{name}"] = array
    return path, arrays


def components() -> Basis:
    """The basis of the capture in the transform encoding."""
    basis = ENCODED["components"].basis
    assert isinstance(basis, Basis)
    return basis


def padded(names: list[str]) -> NDArray[np.uint8]:
    """Names as bytes of one length."""
    encoded = [name.encode() for name in names]
    width = max(map(len, encoded))
    return np.frombuffer(b"".join(name.ljust(width, b"\0") for name in encoded), np.uint8).reshape(-1, width)


def assert_same(found: NDArray[Any], wanted: NDArray[Any], name: str) -> None:
    assert found.dtype == wanted.dtype, name
    assert found.shape == wanted.shape, name
    assert found.tobytes() == np.ascontiguousarray(wanted).tobytes(), name


def test_zarr_python(case: tuple[Path, Arrays]) -> None:
    path, arrays = case
    group = zarr.open_group(path, mode="r", zarr_format=3)
    found = {name for name, node in group.members(max_depth=None) if isinstance(node, zarr.Array)}
    assert found == set(arrays)
    for name, wanted in arrays.items():
        node = group[name]
        assert isinstance(node, zarr.Array)
        assert_same(np.asarray(node[...]), wanted, name)


def listing_warnings(path: Path, *silenced: str) -> list[str]:
    """The warnings of zarr-python while it lists all members of a store."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for message in silenced:
            warnings.filterwarnings("ignore", message=message)
        list(zarr.open_group(path, mode="r", zarr_format=3).members(max_depth=None))
    return [str(warning.message) for warning in caught]


def test_the_filter_of_the_format_page_is_enough(case: tuple[Path, Arrays]) -> None:
    """zarr-python warns of each folder that is no node; the page gives the filter for this one message."""
    path, arrays = case
    page = (ROOT / "docs" / "format-v1.md").read_text(encoding="utf-8")
    (message,) = re.findall(r'filterwarnings\("ignore", message="([^"]+)"\)', page)
    assert re.match(message, f"Object at {CARD_FILE} is not recognized")
    assert listing_warnings(path), "the control: without the filter there are warnings"
    assert listing_warnings(path, message) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_group(path, mode="r", zarr_format=3)
        assert all(group[name].shape is not None for name in arrays)


def test_dask(case: tuple[Path, Arrays]) -> None:
    path, arrays = case
    for name, wanted in arrays.items():
        found = dask.array.from_zarr(str(path), component=name).compute(scheduler="synchronous")
        assert_same(np.asarray(found), wanted, name)


def test_xarray_parts(case: tuple[Path, Arrays]) -> None:
    path, arrays = case
    for part in sorted({name.rpartition("/")[0] for name in arrays}):
        with xarray.open_zarr(path / part, consolidated=False, chunks=None, mask_and_scale=False) as dataset:
            wanted = {name.rpartition("/")[2]: a for name, a in arrays.items() if name.startswith(f"{part}/")}
            assert set(dataset.data_vars) == set(wanted)
            for name, array in wanted.items():
                assert_same(dataset[name].values, array, f"{part}/{name}")


def test_xarray_root(case: tuple[Path, Arrays]) -> None:
    path, arrays = case
    with xarray.open_datatree(path, engine="zarr", consolidated=False, mask_and_scale=False) as datatree:
        for name, wanted in arrays.items():
            part, _, array = name.rpartition("/")
            assert_same(datatree[part][array].values, wanted, name)
        assert datatree["teachers/wide"]["logits"].dims == ("view", "row", "class")
        assert datatree["teachers/codes"]["error"].dims == ("view", "row", "temperature")
        assert datatree["teachers/largest"]["index"].dims == ("view", "row", "k")


def test_xarray_decodes_codes_as_we_do(case: tuple[Path, Arrays]) -> None:
    """`scale_factor` and `_FillValue` are what it knows from CF: whoever opens a capture gets its logits."""
    path, _ = case
    store = open_store(path)
    with xarray.open_datatree(path, engine="zarr", consolidated=False) as datatree:
        for name in ("codes", "bytes", "shifted"):
            found = datatree[f"teachers/{name}"]["logits"]
            for view in (0, 1):
                ours = store.teachers[name].read(slice(None), view)
                assert not np.isnan(found.values).any()
                assert np.array_equal(found.values[view].astype(np.float32), ours)
        for name in ("wide", "deep"):
            ours = store.teachers[name].read(slice(None))
            assert np.array_equal(datatree[f"teachers/{name}"]["logits"].values[0].astype(np.float32), ours)


def test_codes_times_scale_are_the_logits(case: tuple[Path, Arrays]) -> None:
    """By zarr-python and the attribute alone: one product in float32."""
    path, _ = case
    store = open_store(path)
    for name in ("codes", "bytes", "shifted"):
        node = zarr.open_array(path / "teachers" / name / "logits", mode="r", zarr_format=3)
        scale = node.attrs["scale_factor"]
        assert isinstance(scale, float)
        assert float(np.float32(scale)) == scale
        assert node.attrs["_FillValue"] == node.fill_value == np.iinfo(node.dtype).max
        stored = np.asarray(node[...])
        assert int(stored.max()) < np.iinfo(node.dtype).max
        decoded = stored.astype(np.float32) * np.float32(scale)
        for view in (0, 1):
            ours = store.teachers[name].read(slice(None), view)
            assert decoded[view].tobytes() == ours.tobytes()


def by_zarr(part: Path, name: str) -> NDArray[Any]:
    return np.asarray(zarr.open_array(part / name, mode="r", zarr_format=3)[...])


def by_dask(part: Path, name: str) -> NDArray[Any]:
    return np.asarray(dask.array.from_zarr(str(part), component=name).compute(scheduler="synchronous"))


def by_xarray(part: Path, name: str) -> NDArray[Any]:
    with xarray.open_zarr(part, consolidated=False, chunks=None, mask_and_scale=False) as dataset:
        return np.asarray(dataset[name].values)


def by_tensorstore(part: Path, name: str) -> NDArray[Any]:
    kvstore = {"driver": "file", "path": str(part / name)}
    opened = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, read=True).result()
    return np.asarray(opened.read().result())


def by_thirty_lines(part: Path, name: str) -> NDArray[Any]:
    return read_array(part / name)


READERS = (by_zarr, by_dask, by_xarray, by_tensorstore, by_thirty_lines)


def three_lines(codes: Any, refine: Any, step: Any, basis: Any, centre: Any) -> NDArray[np.float32]:
    code = (codes.astype("i4") >> 1) ^ -(codes.astype("i4") & 1)
    scale = step * np.exp2(refine / -2.0)[..., None]
    logits = (code * scale).astype("f4") @ basis + centre
    return np.asarray(logits)


def test_the_three_lines_are_those_of_the_page() -> None:
    page = (ROOT / "docs" / "format-v1.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"```python\n(code = .*?)```", page, re.DOTALL)
    assert lines == textwrap.dedent("".join(inspect.getsource(three_lines).splitlines(keepends=True)[1:4]))


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_three_lines_decode_components(case: tuple[Path, Arrays], reader: Any) -> None:
    """By any reader and the page alone: the logits of ours, up to a constant a row, and its escaped rows by their scale."""
    path, _ = case
    part, capture = path / "teachers/components", open_store(path).teachers["components"]
    codes, refine, escape = (reader(part, name) for name in ("codes", "refine", "escape"))
    decoded = three_lines(codes, refine, *(reader(part, name) for name in ("step", "basis", "centre")))
    attributes = json.loads((part / "escape/zarr.json").read_bytes())["attributes"]
    escaped = refine == 255
    logits = np.where(escaped[..., None], escape * attributes["scale_factor"], decoded)
    logits -= logits.max(axis=2, keepdims=True)
    for view in (0, 1):
        assert np.allclose(logits[view], capture.read(slice(None), view), rtol=0, atol=1e-5)
    if logits.shape[1] > 1:
        assert escaped.any() and not escaped.all()


def test_tensorstore(case: tuple[Path, Arrays]) -> None:
    path, arrays = case
    for name, wanted in arrays.items():
        kvstore = {"driver": "file", "path": str(path / name)}
        found = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, read=True).result()
        assert_same(np.asarray(found.read().result()), wanted, name)


ZARRS = """
import sys, warnings
import numpy as np
import zarr, zarrs
zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline", "threading.max_workers": 1})
warnings.filterwarnings("error", message=".*zarrs.*")
wanted = np.load(sys.argv[2])
for name in wanted.files:
    node = zarr.open_array(sys.argv[1] + "/" + name, mode="r", zarr_format=3)
    assert type(node._async_array.codec_pipeline).__name__ == "ZarrsCodecPipeline"
    found = np.asarray(node[...])
    assert (found.dtype, found.shape, found.tobytes()) == (
        wanted[name].dtype, wanted[name].shape, np.ascontiguousarray(wanted[name]).tobytes()), name
print(len(wanted.files))
"""


def test_zarrs(case: tuple[Path, Arrays], tmp_path: Path) -> None:
    """In a process of its own, since zarrs is chosen for a whole process."""
    path, arrays = case
    np.savez(tmp_path / "wanted.npz", **arrays)  # type: ignore[arg-type]
    command = [sys.executable, "-c", ZARRS, str(path), str(tmp_path / "wanted.npz")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, str(len(arrays))), done.stderr


def test_thirty_lines(case: tuple[Path, Arrays]) -> None:
    path, arrays = case
    for name, wanted in arrays.items():
        assert_same(read_array(path / name), wanted, name)


def test_the_readers_would_notice(case: tuple[Path, Arrays], tmp_path: Path) -> None:
    """Negative control: the comparison sees a single bit, and crc32c stops the readers that check it."""
    path, arrays = case
    wrong = arrays["samples/source"].copy()
    wrong.view(np.uint8)[0] ^= 1
    with pytest.raises(AssertionError, match="samples/source"):
        assert_same(read_array(path / "samples/source"), wrong, "samples/source")
    copy = tmp_path / "source"
    copy.mkdir()
    for file in (path / "samples/source").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    stores.flip(copy / "c.0", 3)
    with pytest.raises(RuntimeError, match="checksum"):
        read_array(copy)
    with pytest.raises(ValueError, match=r"crc|checksum"):
        zarr.open_array(copy, mode="r", zarr_format=3)[...]
    # What only a seal can notice: two good shards exchanged.
    if (copy / "c.1").exists():
        stores.flip(copy / "c.0", 3)
        first, second = (copy / "c.0").read_bytes(), (copy / "c.1").read_bytes()
        (copy / "c.0").write_bytes(second)
        (copy / "c.1").write_bytes(first)
        assert not np.array_equal(read_array(copy), arrays["samples/source"])
