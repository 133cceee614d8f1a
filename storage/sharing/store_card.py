"""The text of a store's card, `STORE.md`: Markdown for people, with the header that the Hugging Face hub reads.

    ---                       licence, size, tags: the hub's header (YAML)
    # name, description       the maker's words, from the card in `samples`
    rows, classes, digest     from the log, the seals and the specs
    ## Load                   three lines of Python, with the digest
    ## Teachers …             encodings, stated fidelity, bytes; scores, if they were measured

It follows from the metadata alone, so that every copy has the same. No shard is read.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ..encodings.error_budget import ErrorBudget
from ..encodings.named import encoding_described
from ..encodings.top_k import TopK
from ..encodings.transform import Transform
from ..errors import LogitStoreError
from ..format.constants import SAMPLES
from ..format.documents import shorten
from ..parts.card import card_of
from ..parts.journal import read_table
from ..parts.reader import Samples
from ..parts.root import Root
from .markdown import inline, paragraphs, quoted, table

PLACE: Final = "PATH or URL of this folder"
"""Where the lines that load a store name no place."""
_MOST_ROWS: Final = 200
"""Rows of a table; a store may have thousands of parts."""
_MOST_NAMES, _MOST_NAME = 12, 60
"""Class names that are shown, and characters of each."""
_LICENCES: Final = frozenset(
    [
        "afl-3.0",
        "agpl-3.0",
        "apache-2.0",
        "artistic-2.0",
        "bsd",
        "bsd-2-clause",
        "bsd-3-clause",
        "bsl-1.0",
        "c-uda",
        "cc",
        "cc-by-2.0",
        "cc-by-2.5",
        "cc-by-3.0",
        "cc-by-4.0",
        "cc-by-nc-2.0",
        "cc-by-nc-3.0",
        "cc-by-nc-4.0",
        "cc-by-nc-nd-3.0",
        "cc-by-nc-nd-4.0",
        "cc-by-nc-sa-2.0",
        "cc-by-nc-sa-3.0",
        "cc-by-nc-sa-4.0",
        "cc-by-nd-4.0",
        "cc-by-sa-3.0",
        "cc-by-sa-4.0",
        "cc0-1.0",
        "cdla-permissive-1.0",
        "cdla-permissive-2.0",
        "cdla-sharing-1.0",
        "ecl-2.0",
        "epl-1.0",
        "epl-2.0",
        "eupl-1.1",
        "eupl-1.2",
        "gfdl",
        "gpl",
        "gpl-2.0",
        "gpl-3.0",
        "isc",
        "lgpl",
        "lgpl-2.1",
        "lgpl-3.0",
        "mit",
        "mpl-2.0",
        "ms-pl",
        "ncsa",
        "odbl",
        "odc-by",
        "ofl-1.1",
        "osl-3.0",
        "pddl",
        "postgresql",
        "unlicense",
        "wtfpl",
        "zlib",
    ]
)
"""Licences that the hub knows by these names. Another one is "other" there."""
_TRUST: Final = (
    "Every byte that is read is compared with the digest. This text is not: whoever may write to this",
    "folder may change it. Take the digest from somebody whom you trust, or check its signature.",
)
_METHOD: Final = (
    "The method is that of G. Hinton, O. Vinyals and J. Dean, *Distilling the Knowledge in a Neural",
    "Network*, arXiv:1503.02531, 2015.",
)
_UNITS: Final = ("bytes", "KiB", "MiB", "GiB", "TiB")


@dataclass(frozen=True)
class Score:
    """A teacher on an evaluation set."""

    examples: int
    """Labelled examples."""
    accuracy: float
    """Share of them whose most probable class is the label."""
    nll: float
    """Mean negative log-likelihood of the labels, nats."""
    calibration_error: float
    """Expected calibration error, from 0 to 1."""

    def cells(self) -> list[str]:
        """Return its figures as cells of the card, which `scores_in` reads."""
        return [
            f"{self.examples:,}",
            f"{100 * self.accuracy:.3f} %",
            f"{self.nll:.5f}",
            f"{self.calibration_error:.5f}",
        ]


_SCORE: Final = re.compile(
    r"\| `([a-z0-9][a-z0-9._-]{0,63})` \| ([\d,]{1,20}) \| (100\.000|\d{1,2}\.\d{3}) % "
    r"\| (\d{1,9}\.\d{5}) \| ([01]\.\d{5}) \|"
)


def scores_in(card: str) -> dict[str, Score]:
    """Return the scores in the text of a card, by capture: numbers alone, whatever else the text holds.

    >>> scores_in("| `wide` | 1,000 | 90.000 % | 0.25000 | 0.01000 |")
    {'wide': Score(examples=1000, accuracy=0.9, nll=0.25, calibration_error=0.01)}
    """
    found = filter(None, map(_SCORE.fullmatch, card.splitlines()))
    return {
        one[1]: Score(
            int(one[2].replace(",", "") or 0), round(float(one[3]) / 100, 5), float(one[4]), float(one[5])
        )
        for one in found
    }


def card_text(root: Root, scores: Mapping[str, Score], location: str | None = None) -> str:
    """Return the text of the card of a store, as of its digest. location: the place in the lines that load it.

    scores: by capture; those of others are left out. Raises ManifestInvalid for damaged samples; a damaged capture is listed
    as one that cannot be read.
    """
    card = _card(root)
    title = inline(card["name"]) if "name" in card else "A store of logits"
    lines = ["---", *_header(root, card), "---", "", f"# {title}", ""]
    lines += [*paragraphs(card["description"]), ""] if "description" in card else []
    lines += [
        f"Logits of {_count(len(root.names('teachers')), 'teacher')}, sealed by logitstore.",
        "",
        *table(["", ""], list(_facts(root, card))),
        "",
        *_loading(root, location),
        "",
    ]
    lines += [*_teachers(root), "", *_scores(root, scores), *_clusterings(root)]
    lines += ["## Cite", "", *_citation(root, card)]
    return "\n".join(lines) + "\n"


def states(card: str, digest: str) -> bool:
    """Return whether the text of a card is that of a digest."""
    return _digest_row(digest) in card.splitlines()


def _digest_row(digest: str) -> str:
    return table([], [["digest", f"`{digest}`"]])[2]


def _card(root: Root) -> dict[str, str]:
    spec = root.begun(SAMPLES) if not root.has(SAMPLES) else root.spec(SAMPLES)
    return {} if spec is None else card_of(spec.notes, f"{root.path}: {SAMPLES}")


def _header(root: Root, card: Mapping[str, str]) -> list[str]:
    """Return the header of the hub: https://huggingface.co/docs/hub/datasets-cards."""
    lines = []
    if "licence" in card:
        name = card["licence"].strip().lower()
        lines.append(f"license: {name if name in _LICENCES else 'other'}")
    lines += [f"pretty_name: {quoted(card['name'])}"] if "name" in card else []
    lines += ["size_categories:", f"- {_size_category(root.attributes.num_rows)}"]
    return [*lines, "tags:", "- logitstore", "- knowledge-distillation", "- logits", "viewer: false"]


def _size_category(rows: int) -> str:
    """Return the hub's name of a size.

    >>> _size_category(999), _size_category(60_000), _size_category(10**13)
    ('n<1K', '10K<n<100K', 'n>1T')
    """
    names = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    steps = [10 ** (3 + number) for number in range(len(names))]
    below = next((number for number, most in enumerate(steps) if rows < most), len(steps))
    if below == len(steps):
        return f"n>{names[-1]}"
    return f"n<{names[0]}" if below == 0 else f"{names[below - 1]}<n<{names[below]}"


def _facts(root: Root, card: Mapping[str, str]) -> Iterator[list[str]]:
    yield ["rows", f"{root.attributes.num_rows:,}"]
    names = _class_names(root)
    yield ["classes", f"{root.attributes.num_classes:,}" + (f": {names}" if names else "")]
    yield ["inputs", _inputs(root)]
    yield ["bytes of the shards", _bytes(sum(_part_bytes(root, record.part) or 0 for record in root.records))]
    titles = {"data_set": "data set", "data_set_licence": "licence of the data set", "licence": "licence"}
    for key, title in {**titles, "contact": "contact"}.items():
        if key in card:
            yield [title, inline(card[key])]
    yield ["digest", f"`{root.digest}`"]


def _class_names(root: Root) -> str:
    if not root.has(SAMPLES) or not any(key.startswith("class_name/") for key in root.seal(SAMPLES).files):
        return ""
    names = Samples(root).class_names
    shown = [name if len(name) <= _MOST_NAME else f"{name[:_MOST_NAME]}…" for name in names[:_MOST_NAMES]]
    more = f", and {len(names) - _MOST_NAMES:,} more" if len(names) > _MOST_NAMES else ""
    return inline(", ".join(shown)) + more


def _inputs(root: Root) -> str:
    if not root.has(SAMPLES):
        return "unknown: the samples are not sealed"
    arrays = {name for name, _ in root.seal(SAMPLES).arrays}
    if "file" in arrays:
        return "stored, as the files of images"
    return "stored" if "input" in arrays else "not stored: pass the data set as `transfer_set`"


def _part_bytes(root: Root, name: str) -> int | None:
    """Return the bytes of the shards of a part; None for one that cannot be read."""
    try:
        seal = root.seal(name)
        return read_table(root.folder.sub(name), seal).total_bytes() if seal.arrays else 0
    except LogitStoreError:
        return None


def _loading(root: Root, location: str | None) -> list[str]:
    place = json.dumps(location or PLACE)
    return [
        "## Load",
        "",
        "```python",
        "import logitstore",
        "",
        f'store = logitstore.open_store({place}, expect="{root.digest}")',
        "stream = store.stream(batch_size=256)",
        "```",
        "",
        *_TRUST,
    ]


def _teachers(root: Root) -> list[str]:
    names = root.names("teachers")
    if not names:
        return ["## Teachers", "", "None is sealed yet."]
    rows = [_teacher(root, name) for name in names[:_MOST_ROWS]]
    columns = ["teacher", "views", "encoding", "fidelity", "size"]
    return ["## Teachers", "", *table(columns, rows), *_left_out(len(names))]


def _teacher(root: Root, name: str) -> list[str]:
    """Return the row of a capture: name, views, encoding, stated fidelity, bytes."""
    try:
        spec = root.spec(f"teachers/{name}")
        described = spec.identity.get("encoding")
        found = encoding_described(described if isinstance(described, Mapping) else {}, f"teachers/{name}")
    except LogitStoreError as error:
        return [f"`{name}`", "", "", f"cannot be read: {inline(shorten(error.found))}", ""]
    origin = spec.identity.get("derived_from")
    source = origin.get("capture") if isinstance(origin, Mapping) else None
    of = "the teacher" if source is None else inline(shorten(str(source)))
    views = spec.identity.get("views", 1)
    size = _part_bytes(root, f"teachers/{name}")
    return [
        f"`{name}`",
        f"{views}" if isinstance(views, int) else "",
        inline(found.kind.replace("_", "-")),
        _fidelity(found, of),
        "" if size is None else _bytes(size),
    ]


def _fidelity(encoding: Any, of: str) -> str:
    """Return the fidelity that an encoding states, in words."""
    if isinstance(encoding, Transform):
        at = ", ".join(f"{t:g}" for t in encoding.temperatures)
        return f"KL to {of} at most {encoding.max_kl:g} nats in every row, at T = {at}"
    if isinstance(encoding, ErrorBudget):
        return (
            f"KL to {of} at most {encoding.max_kl:g} nats in every row, at T ≥ {encoding.min_temperature:g}"
        )
    if isinstance(encoding, TopK):
        return f"the {encoding.k:,} largest logits of {of} and the figures of the others; no bound"
    return "exact" if encoding.kind == "float32" else f"logits rounded to {encoding.kind}"


def _scores(root: Root, scores: Mapping[str, Score]) -> list[str]:
    rows = [
        [f"`{name}`", *scores[name].cells()] for name in root.names("teachers")[:_MOST_ROWS] if name in scores
    ]
    if not rows:
        return []
    columns = ["teacher", "examples", "accuracy", "NLL (nats)", "calibration error"]
    told = "As whoever wrote this card measured it, on an evaluation set; the digest does not cover these figures."
    return ["## Scores", "", told, "", *table(columns, rows), ""]


def _clusterings(root: Root) -> list[str]:
    names = root.names("clusters")
    listed = ", ".join(f"`{name}`" for name in names[:_MOST_ROWS])
    return ["## Clusterings", "", listed, *_left_out(len(names)), ""] if names else []


def _left_out(count: int) -> list[str]:
    return ["", f"And {count - _MOST_ROWS:,} more: see `logitstore inspect`."] if count > _MOST_ROWS else []


def _citation(root: Root, card: Mapping[str, str]) -> list[str]:
    name = inline(card["name"]) if "name" in card else "A store of logits"
    by = f", {inline(card['contact'])}" if "contact" in card else ""
    return [
        f"Name the store and its digest, which is that of every byte: {name}{by}, `{root.digest}`.",
        "",
        *_METHOD,
    ]


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _bytes(size: int) -> str:
    """Return a number of bytes in a readable unit.

    >>> _bytes(1023), _bytes(44_956_928)
    ('1,023 bytes', '42.9 MiB')
    """
    power = min(4, max(0, size.bit_length() - 1) // 10)
    return f"{size / 1024**power:,.1f} {_UNITS[power]}" if power else f"{size:,} bytes"
