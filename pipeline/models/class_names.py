"""Class names of a model, or of an evaluation set, compared with those of the transfer set.

A model that was trained on another class order gives good logits in the wrong columns: nothing fails, and every student
learns nonsense. Class names are therefore compared before a model is built. They are read from

    `id2label` in config.json of a Hugging Face model,
    "class_names", a JSON list, in the metadata of a safetensors file,
    the extra file "class_names.json" of a TorchScript or `torch.export` file,
    the attribute `class_names` of the module itself, or, as transformers' models have it, `config.id2label`.

Generic names (LABEL_0, LABEL_1, …) are not compared. Case is ignored, and "_" equals a blank. A letter with its accent is
one, however Unicode spells it.
"""

import json
import logging
import re
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from ...storage.errors import BadDataError
from .sources import CONFIG, read_json

log = logging.getLogger(__name__)
_GENERIC = re.compile(r"(?:label|class)?[ _-]?(\d+)", re.IGNORECASE)
_BY_NUMBER = "labels are taken for the numbers of the transfer set's classes: only one of the two sets names its classes"
_MAX_BYTES = 16 << 20
"""Length of the longest header or extra file that is read."""


def stated_class_names(path: Path) -> list[str] | None:
    """Return the class names in a model's file or folder; None if it has none.

    Raises BadDataError if the entry for class names holds anything else.
    """
    if path.is_dir():
        return _of_hugging_face(path / CONFIG)
    text = None
    if path.suffix == ".safetensors":
        text = _metadata_of_safetensors(path)
    elif zipfile.is_zipfile(path):
        text = _extra_file_of_archive(path)
    if text is None:
        return None
    try:
        names = json.loads(text)
    except (TypeError, ValueError, RecursionError):
        names = None
    return _check_names(names, path, "class names, a JSON list of strings", text)


def module_class_names(module: Any, num_classes: int) -> list[str] | None:
    """Return the class names that a module has; None without any.

    `id2label` counts if it has as many classes as the logits: that of another head stays in a config.
    """
    names = getattr(module, "class_names", None)
    if names is None:
        labels = getattr(getattr(module, "config", None), "id2label", None)
        if isinstance(labels, Mapping) and set(labels) == set(range(num_classes)):
            names = [labels[number] for number in range(num_classes)]
    if isinstance(names, str) or not isinstance(names, Iterable):
        return None
    return [str(name) for name in names] or None


def check_class_order(names: Sequence[str] | None, wanted: Sequence[str] | None, where: str) -> None:
    """Refuse a model whose classes differ from those of the transfer set, in name or order.

    names: of the model's classes. wanted: of the transfer set's classes. Either is None if unknown. where: the model in
    messages. Raises BadDataError with the first difference.
    """
    if names is None:
        return
    by_number = wanted is not None and _are_numbers(names) and _are_numbers(wanted)
    if is_generic(names) and not by_number:
        log.info("%s: class names not compared: they only number the classes (%s, …)", where, names[0])
        return
    if wanted is None:
        log.info("%s: class names not compared: the transfer set has none", where)
        return
    ours, theirs = _plain(wanted, names)
    if by_number:  # folders by number are sorted as text: "10" comes before "2"
        ours, theirs = ([str(int(name)) for name in some] for some in (wanted, names))
    for index, (own, other) in enumerate(zip(ours, theirs, strict=False)):
        if own != other:
            place = f", class {ours.index(other)} of the transfer set" if other in ours else ""
            raise BadDataError(
                where,
                expected=f"{wanted[index]!r} as class {index}, as in the transfer set",
                found=f"{names[index]!r}{place}",
                remedy="reorder the classes, or set check_class_names = false if only the names differ",
            )
    if len(ours) != len(theirs):
        raise BadDataError(
            where,
            expected=f"{len(ours)} classes, as in the transfer set",
            found=f"{len(theirs)} classes",
            remedy="use a teacher that was trained on the classes of the transfer set",
        )


def is_generic(names: Sequence[str]) -> bool:
    """Return whether the names only number the classes in order.

    >>> is_generic(["LABEL_0", "LABEL_1"]), is_generic(["LABEL_1", "LABEL_0"]), is_generic(["cat", "dog"])
    (True, False, False)
    """
    matches = [_GENERIC.fullmatch(name) for name in names]
    return all(match is not None and int(match[1]) == index for index, match in enumerate(matches))


def match_classes(
    names: Sequence[str] | None, wanted: Sequence[str] | None, num_classes: int, where: str
) -> Int64[np.ndarray, " own"] | None:
    """Return, for each class of an evaluation set, the class of the transfer set by name; None if all numbers are the same.

    names: of the set's classes. wanted: of the transfer set's, of which there are `num_classes`. Each is None for a set
    without names. If one of them names its classes and the other only numbers as many, numbers are taken, with a warning.
    where: the set in messages. Raises BadDataError with the class that is none of the transfer set's.

    >>> match_classes(["cow", "ant"], ["ant", "bee", "cow"], 3, "evaluation_set").tolist()
    [2, 0]
    """
    if not names:
        if wanted and not is_generic(wanted):
            log.warning("%s: %s", where, _BY_NUMBER)
        return None
    own, theirs = list(names), list(wanted or map(str, range(num_classes)))
    if own == theirs:
        return None
    for names_of_one, whose in ((own, where), (theirs, "transfer_set")):
        _check_distinct(names_of_one, whose)
    plain, known = _plain(own, theirs)
    strange = [name for name, one in zip(own, plain, strict=True) if one not in known]
    if not strange:
        class_of = np.array([known.index(one) for one in plain], np.int64)
        return None if np.array_equal(class_of, np.arange(len(own))) else class_of
    if len(own) == len(theirs) and (
        (is_generic(own) and not _are_numbers(theirs)) or (is_generic(theirs) and not _are_numbers(own))
    ):
        log.warning("%s: %s", where, _BY_NUMBER)
        return None
    lacking = [name for name, one in zip(theirs, known, strict=True) if one not in plain] or theirs
    raise BadDataError(
        f"{where}: class {strange[0]!r}",
        expected=f"a class of the transfer set, such as {lacking[0]!r}",
        found=f"a name that none of its {len(theirs)} classes has",
        remedy="name the classes as the transfer set does, or evaluate on examples of the same classes",
    )


def _are_numbers(names: Sequence[str]) -> bool:
    return all(name.isdecimal() for name in names)


def _check_distinct(names: Sequence[str], where: str) -> None:
    """Refuse two classes of one name, which cannot be told apart by it. Raises BadDataError."""
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise BadDataError(
            f"{where}: class_names",
            expected="each name once",
            found=f"{name!r} {count} times",
            remedy="rename the classes",
        )


def _plain(*lists: Sequence[str]) -> list[list[str]]:
    """Return lists of names without case and underscores, in one Unicode form.

    All are less plain where that would merge two names of one list: only the form, or nothing, is then unified.
    """
    composed = [[unicodedata.normalize("NFC", name) for name in names] for names in lists]
    plain = [[" ".join(name.replace("_", " ").casefold().split()) for name in names] for names in composed]
    exact = [list(names) for names in lists]
    for form in (plain, composed):
        if all(len(set(some)) == len(set(names)) for some, names in zip(form, exact, strict=True)):
            return form
    return exact


def _of_hugging_face(config: Path) -> list[str] | None:
    labels = read_json(config).get("id2label")
    if labels is None:
        return None
    try:
        names = [labels[str(index)] for index in range(len(labels))]
    except (KeyError, TypeError):
        names = None
    return _check_names(names, config, "id2label that numbers the class names from 0", labels)


def _metadata_of_safetensors(path: Path) -> Any:
    """Return the metadata "class_names"; None if it is absent or the file is damaged, which loading then reports."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > _MAX_BYTES:
                return None
            return json.loads(file.read(size)).get("__metadata__", {}).get("class_names")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None


def _extra_file_of_archive(path: Path) -> bytes | None:
    """Return the content of class_names.json; None if it is absent or the file is damaged, as above."""
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.filename.endswith("/extra/class_names.json"):
                    if entry.file_size > _MAX_BYTES:
                        raise BadDataError(
                            str(path),
                            expected=f"at most {_MAX_BYTES} bytes of class_names.json",
                            found=f"{entry.file_size} bytes",
                            remedy="export the model again without class_names.json",
                        )
                    return archive.read(entry)
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError):
        pass
    return None


def _check_names(names: object, path: Path, expected: str, found: object) -> list[str]:
    if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
        return names
    raise BadDataError(
        str(path), expected=expected, found=repr(found)[:60], remedy="correct the class names, or remove them"
    )
