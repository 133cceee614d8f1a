"""The basis of a capture in the transform encoding: four small arrays of its part, and the digest that binds blocks to them.

    notes.basis ─ sha256 ──>  basis, centre, step, weight
    spec.json   <─ sha256 ──  every commit record

So a record vouches for the basis in which its codes were made. A basis is trusted only once its digest is that of the notes.
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32, Int64
from numpy.typing import NDArray

from ..backends.place import Place
from ..encodings.basis import MOST_LOGIT, Basis
from ..errors import ManifestInvalid, ShardCorrupt, remedied
from ..format.constants import MAX_JSON_BYTES, SPEC, TRANSFORM
from ..format.documents import invalid, parse_spec, shorten
from ..format.grid import Grid
from ..format.layouts import BASIS, check_basis, check_layout
from ..format.metadata import ArrayLayout
from ..format.shard import CRC_BYTES, REMAKE, decode_small
from .journal import Seal, read_checked
from .sealed_part import SealedPart, small_keys


class StoredBasis(Basis):
    """The basis of a sealed capture, read when the first row is decoded."""

    def __init__(
        self, part: SealedPart, places: Callable[[], Int64[np.ndarray, " classes"] | None] = lambda: None
    ) -> None:
        """Prepare to read. places: gives the stored column of each column that is decoded; None for all in order."""
        self._part = part
        self._places = places
        self._held: Mapping[str, NDArray[Any]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Another process reads the arrays itself, once, and only if it decodes.
        return {"_part": self._part, "_places": self._places, "_held": None}

    @property
    def basis(self) -> Float32[np.ndarray, "components classes"]:
        """Logits of a component's unit."""
        return self._arrays["basis"]

    @property
    def centre(self) -> Float32[np.ndarray, " classes"]:
        """Logits of the origin."""
        return self._arrays["centre"]

    @property
    def step(self) -> Float32[np.ndarray, " components"]:
        """Step of a component in a row that is not refined."""
        return self._arrays["step"]

    @property
    def weight(self) -> Float32[np.ndarray, " classes"]:
        """The metric in which logits are projected on the axes."""
        return self._arrays["weight"]

    @property
    def num_components(self) -> int:
        """Axes, from the metadata alone."""
        return self._part.layouts["basis"].shape[0]

    @property
    def num_classes(self) -> int:
        """Columns of the logits, from the metadata alone."""
        return self._part.layouts["basis"].shape[1]

    @property
    def digest(self) -> str:
        """ "sha256:…" of the arrays as they are stored."""
        self.check()
        return digest_noted(self._part.spec.notes, str(self._part.folder.path))

    @property
    def _arrays(self) -> Mapping[str, NDArray[Any]]:
        # No cached_property: see `SealedPart.table`. Two threads may both read them, to the same numbers.
        if self._held is None:
            self._held = self._read()
        return self._held

    def _read(self) -> dict[str, NDArray[Any]]:
        where = str(self._part.folder.path)
        arrays = {name: self._part.small(name) for name in BASIS}
        basis = Basis(**arrays)
        check_digest(basis, self._part.spec.notes, where)
        check_numbers(basis, where)
        places = self._places()
        if places is None:
            return arrays
        ordered = {name: np.ascontiguousarray(arrays[name][..., places]) for name in BASIS if name != "step"}
        for values in ordered.values():
            values.setflags(write=False)
        return arrays | ordered

    def __repr__(self) -> str:
        return f"<StoredBasis of {self._part.name}: {self.num_components} components of {self.num_classes} classes>"

    def check(self) -> None:
        """Read the arrays, unless they are read. Raises ManifestInvalid, ShardCorrupt."""
        _ = self._arrays


def check_numbers(basis: Basis, where: str) -> None:
    """Refuse numbers that no writer stores, though their digests are right. Raises ManifestInvalid."""
    for name, values in basis.arrays().items():
        if not np.isfinite(values).all():
            raise invalid(f"{where}/{name}", "finite numbers", "NaN or an infinity")
    for name, values in (("step", basis.step), ("weight", basis.weight)):
        if (least := float(values.min())) <= 0:
            raise invalid(f"{where}/{name}", "numbers above 0", least)
    if (most := basis.reach) > MOST_LOGIT:
        raise invalid(f"{where}/basis", f"logits of magnitudes up to {MOST_LOGIT:g}", f"{most:.3g}")


def digest_noted(notes: Mapping[str, Any], where: str) -> str:
    """Return the digest of the basis in the notes of a spec. Raises ManifestInvalid."""
    digest = notes.get("basis")
    if not isinstance(digest, str):
        raise invalid(f"{where}/{SPEC}: notes: basis", "sha256:…, the digest of the basis", shorten(digest))
    return digest


def check_digest(basis: Basis, notes: Mapping[str, Any], where: str) -> None:
    """Refuse a basis other than the one that the notes name. Raises ManifestInvalid."""
    wanted = digest_noted(notes, where)
    if basis.digest != wanted:
        raise ManifestInvalid(
            f"{where}/basis",
            expected=f"the basis of this capture, {wanted[:19]}…",
            found=f"{basis.digest[:19]}…: one of {', '.join(BASIS)} was exchanged",
            remedy=f"restore them from a copy; or delete {where} to begin the capture anew, if it is not sealed",
        )


class HeldBasis:
    """The basis that a capture was begun with, as far as its files are there."""

    def __init__(self, folder: Place, grid: Grid, seal: Seal | None = None) -> None:
        """Read the spec of a part. seal: of a sealed one.

        Raises FileNotFoundError without a spec, ManifestInvalid for a damaged one.
        """
        self._folder, self._grid, self._seal = folder, grid, seal
        self._where = str(folder.path)
        self.spec = (
            folder.read(SPEC) if seal is None else read_checked(folder, SPEC, seal.files.get(SPEC, ""))
        )
        """The bytes of spec.json."""
        self._notes = parse_spec(self.spec, f"{self._where}/{SPEC}")[1]

    @property
    def digest(self) -> str:
        """ "sha256:…" of the basis, whether its files are there or not. Raises ManifestInvalid."""
        return digest_noted(self._notes, self._where)

    def _file(self, key: str, most: int = MAX_JSON_BYTES) -> bytes | None:
        """Read a file, compared with the seal if there is one; None for a missing one."""
        if not self._folder.exists(key):
            return None
        if self._seal is None:
            return self._folder.read(key, most)
        return read_checked(self._folder, key, self._seal.files.get(key, ""), most)

    def read(self) -> Basis | None:
        """Read the basis; None if a file of it is missing, or all are.

        Raises ManifestInvalid for a basis that is torn or was exchanged, LimitExceeded for one beyond the limits.
        """
        layouts = {name: self._layout(name) for name in BASIS}
        there = {name: layout for name, layout in layouts.items() if layout is not None}
        if len(there) < len(BASIS):
            return None
        check_basis(there, there["basis"].shape[1], self._where)
        arrays = {}
        # `repair` removes a torn chunk, and the writer makes it again.
        with remedied(ShardCorrupt, REMAKE):
            for name, layout in there.items():
                size = layout.shard_rows * layout.row_bytes + CRC_BYTES
                chunks = [self._file(key, size) for key in small_keys(layout)]
                if None in chunks:
                    return None
                arrays[name] = decode_small(layout, [c for c in chunks if c], f"{self._where}/{name}")
        basis = Basis(**arrays)
        check_digest(basis, self._notes, self._where)
        check_numbers(basis, self._where)
        return basis

    def _layout(self, name: str) -> ArrayLayout | None:
        key = f"{name}/zarr.json"
        data, where = self._file(key), f"{self._where}/{key}"
        if data is None:
            return None
        layout = ArrayLayout.from_bytes(name, data, where)
        check_layout(layout, TRANSFORM, self._grid, 1, where)
        return layout


def check_held(folder: Place, grid: Grid) -> None:
    """Refuse the basis of a begun capture if it is torn, or not the one that its notes name.

    A basis that lacks files passes: its writer puts them. Raises ManifestInvalid, ShardCorrupt, LimitExceeded.
    """
    with contextlib.suppress(FileNotFoundError):
        HeldBasis(folder, grid).read()
