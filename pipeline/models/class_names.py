"""Class names that a model states, compared with those of the transfer set.

A model that was trained with its classes in another order gives good logits in the wrong columns: nothing fails, and
every student learns nonsense. So where a model says the names of its classes, they are compared, before it is
built. They are looked for

    in `id2label` of a Hugging Face model's config.json,
    in the metadata of a safetensors file, under "class_names", a JSON list,
    in an extra file "class_names.json" of a TorchScript or `torch.export` file,
    in an attribute `class_names` of the module itself.

Names that say nothing (LABEL_0, LABEL_1, …) are not compared. Case, and "_" for a blank, make no difference.
"""

import json
import logging
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from ...storage.errors import BadDataError
from .sources import CONFIG, read_json

log = logging.getLogger(__name__)
EXTRA_FILE: Final = "class_names.json"
"""Name of the extra file of an exported model."""
METADATA_KEY: Final = "class_names"
"""Key in the metadata of a safetensors file."""
_GENERIC = re.compile(r"(?:label|class)?[ _-]?(\d+)", re.IGNORECASE)
_MAX_HEADER_BYTES = 16 << 20


def stated_class_names(path: Path) -> list[str] | None:
    """Return the class names that a model's file or folder states, or None.

    Raises BadDataError where it says something else than names under the name of them.
    """
    if path.is_dir():
        return _of_hugging_face(path / CONFIG)
    if path.suffix == ".safetensors":
        return _of_safetensors(path)
    if zipfile.is_zipfile(path):
        return _of_archive(path)
    return None


def check_class_order(names: Sequence[str] | None, wanted: Sequence[str] | None, where: str) -> None:
    """Refuse a model whose classes are not those of the transfer set, or are in another order.

    names: of the model's classes; wanted: of the transfer set's; None where unknown. where: what messages call
    the model. Raises BadDataError with the first difference.
    """
    if names is None:
        return
    if is_generic(names):
        log.info("%s: its class names (%s, …) say nothing and are not compared", where, names[0])
        return
    if wanted is None:
        log.info("%s: its class names are not compared, as the transfer set has none", where)
        return
    ours, theirs = _plain(wanted), _plain(names)
    if ours == theirs:
        return
    remedy = (
        "bring the classes into one order, or set check_class_names = false where they differ in name alone"
    )
    for index, (own, other) in enumerate(zip(ours, theirs, strict=False)):
        if own != other:
            other_place = f", which is class {ours.index(other)} there" if other in ours else ""
            raise BadDataError(
                where,
                expected=f"class {index} to be {wanted[index]!r}, as in the transfer set",
                found=f"{names[index]!r}{other_place}",
                remedy=remedy,
            )
    raise BadDataError(
        where,
        expected=f"the {len(ours)} classes of the transfer set",
        found=f"{len(theirs)}",
        remedy="take a teacher of these very classes",
    )


def is_generic(names: Sequence[str]) -> bool:
    """Return whether the names only number the classes in order.

    >>> is_generic(["LABEL_0", "LABEL_1"]), is_generic(["LABEL_1", "LABEL_0"]), is_generic(["cat", "dog"])
    (True, False, False)
    """
    matches = [_GENERIC.fullmatch(name) for name in names]
    return all(match is not None and int(match[1]) == index for index, match in enumerate(matches))


def _plain(names: Sequence[str]) -> list[str]:
    """Return names without case and underscores; unchanged if that would merge two of them."""
    plain = [" ".join(name.replace("_", " ").casefold().split()) for name in names]
    return plain if len(set(plain)) == len(set(names)) else list(names)


def _of_hugging_face(config: Path) -> list[str] | None:
    labels = read_json(config).get("id2label")
    if labels is None:
        return None
    try:
        return _names([labels[str(index)] for index in range(len(labels))], config)
    except (KeyError, TypeError):
        raise _no_names(config, "an id2label that does not number the classes from 0") from None


def _of_safetensors(path: Path) -> list[str] | None:
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > _MAX_HEADER_BYTES:
                return None  # whoever reads the weights says what is wrong
            text = json.loads(file.read(size)).get("__metadata__", {}).get(METADATA_KEY)
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return None if text is None else _parse(text, path)


def _of_archive(path: Path) -> list[str] | None:
    try:
        with zipfile.ZipFile(path) as archive:
            found = [one for one in archive.infolist() if one.filename.endswith(f"/extra/{EXTRA_FILE}")]
            if not found:
                return None
            if found[0].file_size > _MAX_HEADER_BYTES:
                raise _no_names(path, f"{found[0].file_size} bytes")
            text = archive.read(found[0])
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError):
        return None
    return _parse(text, path)


def _parse(text: Any, path: Path) -> list[str]:
    try:
        return _names(json.loads(text), path)
    except (TypeError, ValueError, RecursionError):
        raise _no_names(path, f"{str(text)[:60]!r}") from None


def _names(value: Any, path: Path) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(name, str) for name in value):
        raise _no_names(path, f"{str(value)[:60]!r}")
    return value


def _no_names(path: Path, found: str) -> BadDataError:
    return BadDataError(
        str(path),
        expected="the names of the classes, a list of texts",
        found=found,
        remedy="correct the names, or leave them out",
    )
