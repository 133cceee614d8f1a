"""The drawn pictures of README and docs: each is described once and written for light and dark pages.

    stages    the three stages and the store between them
    row       the way of one row from the teacher to the loss, with the files that carry it

Run `python docs/images/draw.py` after a change. A test compares the files with the description.
Positions are in pixels from the top left. Text stays text, so leave a fifth of slack: fonts differ.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path

HERE = Path(__file__).resolve().parent
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', Arial, sans-serif"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


@dataclass(frozen=True)
class Theme:
    """The colours of one kind of page; the page itself shines through."""

    name: str
    ink: str
    muted: str
    panel: str
    card: str
    border: str
    blue: str
    purple: str
    green: str
    amber: str


LIGHT = Theme(
    "light", "#1f2328", "#59636e", "#f6f8fa", "#ffffff", "#d1d9e0", "#0969da", "#8250df", "#1a7f37", "#bf6a02"
)
DARK = Theme(
    "dark", "#f0f6fc", "#9198a1", "#151b23", "#0d1117", "#3d444d", "#4493f8", "#ab7df8", "#3fb950", "#e3a03b"
)


# Shapes


def text(
    x: float,
    y: float,
    words: str,
    colour: str,
    size: float = 13,
    anchor: str = "start",
    weight: int = 400,
    mono: bool = False,
) -> str:
    """Return a line of text whose baseline is at y; `anchor` says which end of it is at x."""
    font = f' font-family="{MONO}"' if mono else ""
    bold = f' font-weight="{weight}"' if weight != 400 else ""
    return (
        f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" fill="{colour}" text-anchor="{anchor}"{bold}{font}>'
        f"{escape(words)}</text>"
    )


def box(
    x: float, y: float, w: float, h: float, fill: str, stroke: str, r: float = 10, width: float = 1
) -> str:
    """Return a rectangle with round corners."""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{r:g}" fill="{fill}" '
        f'stroke="{stroke}" stroke-width="{width:g}"/>'
    )


def cell(x: float, y: float, w: float, h: float, fill: str, opacity: float, r: float = 1.5) -> str:
    """Return a small filled rectangle without a border."""
    return (
        f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="{r:g}" fill="{fill}" '
        f'fill-opacity="{opacity:g}"/>'
    )


def arrow(path: str, colour: str, dashed: bool = False, both: bool = False) -> str:
    """Return a path with a head at its end, or at both ends. A head is a marker of the colour: see `heads`."""
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    dash += f' marker-start="url(#head-{colour[1:]})"' if both else ""
    return (
        f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2" stroke-linecap="round"{dash} '
        f'marker-end="url(#head-{colour[1:]})"/>'
    )


def heads(colours: Iterable[str]) -> str:
    """Return the arrow heads, one a colour."""
    return "".join(
        f'<marker id="head-{colour[1:]}" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="5" markerHeight="5" '
        f'orient="auto-start-reverse"><path d="M0 0.5 L7.5 4 L0 7.5 Z" fill="{colour}"/></marker>'
        for colour in colours
    )


def network(x: float, y: float, w: float, h: float, layers: tuple[int, ...], colour: str) -> str:
    """Return a net of units in columns, each joined to the next column."""
    step = w / (len(layers) - 1)
    units = [
        [(x + column * step, y + h * (row + 0.5) / count) for row in range(count)]
        for column, count in enumerate(layers)
    ]
    lines = "".join(
        f"M{ax:g} {ay:.1f}L{bx:g} {by:.1f}"
        for left, right in pairwise(units)
        for ax, ay in left
        for bx, by in right
    )
    dots = "".join(f'<circle cx="{a:g}" cy="{b:.1f}" r="3.4"/>' for column in units for a, b in column)
    return f'<path d="{lines}" stroke="{colour}" stroke-opacity="0.35" fill="none"/><g fill="{colour}">{dots}</g>'


def heading(x: float, y: float, number: str, word: str, about: str, colour: str, theme: Theme) -> str:
    """Return the heading of a stage: its number in a disc, its command and one line about it."""
    return (
        f'<circle cx="{x + 11:g}" cy="{y:g}" r="11" fill="{colour}"/>'
        + text(x + 11, y + 4.5, number, theme.card, 13, "middle", 700)
        + text(x + 30, y + 5, word, theme.ink, 16, weight=700)
        + text(x, y + 30, about, theme.muted, 12.5)
    )


def svg(width: int, height: int, title: str, about: str, theme: Theme, parts: Iterable[str]) -> str:
    """Return a whole picture."""
    colours = (theme.blue, theme.purple, theme.green, theme.amber, theme.muted)
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" role="img" aria-label="{escape(title)}" font-family="{FONT}">\n'
        f"<title>{escape(title)}</title>\n<desc>{escape(about)}</desc>\n"
        f"<defs>{heads(colours)}</defs>\n{body}\n</svg>\n"
    )


# The three stages


def _transfer_set(x: float, y: float, theme: Theme) -> Iterable[str]:
    """Yield a pile of examples."""
    for depth in (2, 1, 0):
        yield box(x + 7 * depth, y - 7 * depth, 52, 52, theme.card, theme.border, 6, 1.2)
    # A digit, drawn in the pixels of a 5 x 5 example.
    for row, pixels in enumerate(("01110", "00010", "00110", "00010", "01110")):
        for column, on in enumerate(pixels):
            if on == "1":
                yield cell(x + 8.5 + 7 * column, y + 8.5 + 7 * row, 6.4, 6.4, theme.ink, 0.7)


def _store(x: float, y: float, theme: Theme) -> Iterable[str]:
    """Yield the store: its parts, each in blocks and with a seal."""
    yield box(x, y, 196, 262, theme.panel, theme.amber, 12, 2)
    yield text(x + 98, y + 27, "store.zarr", theme.ink, 16, "middle", 700, mono=True)
    parts = (
        ("samples", theme.muted, 42),
        ("teachers/wide", theme.blue, 86),
        ("teachers/deep", theme.blue, 130),
        ("clusters/sets", theme.purple, 174),
        ("teachers/combined", theme.green, 218),
    )
    for number, (name, colour, top) in enumerate(parts):
        yield box(x + 12, y + top, 172, 36, theme.card, theme.border, 6)
        yield text(x + 21, y + top + 14, name, theme.ink, 11, mono=True)
        for block in range(16):
            # Shades that look like data and are the same at every run.
            shade = 0.3 + 0.6 * ((block * 7 + number * 5) % 11) / 10
            yield cell(x + 21 + 8.2 * block, y + top + 20, 6.9, 9, colour, shade)
        tick = f"M{x + 165:g} {y + top + 18.5:g}l3.6 4l6.4 -8.5"
        yield f'<path d="{tick}" fill="none" stroke="{theme.amber}" stroke-width="2.2" stroke-linecap="round"/>'


def _covariance(x: float, y: float, theme: Theme) -> Iterable[str]:
    """Yield a covariance matrix in which three sets of classes stand out."""
    size, sets = 9, ((0, 1, 2), (3, 4), (5, 6, 7, 8))
    inside = {(a, b) for members in sets for a in members for b in members}
    for row in range(size):
        for column in range(size):
            near = 0.95 - 0.12 * abs(row - column)
            shade = near if (row, column) in inside else 0.1 + 0.04 * ((row * 3 + column * 5) % 3)
            yield cell(x + 8.6 * column, y + 8.6 * row, 7.8, 7.8, theme.purple, shade)


def _chips(x: float, y: float, theme: Theme) -> Iterable[str]:
    """Yield the sets of classes that come of it."""
    for row, members in enumerate((("3", "5", "8"), ("4", "9"), ("1", "2", "7"))):
        for column, member in enumerate(members):
            left, top = x + 27 * column, y + 27 * row
            yield box(left, top, 22, 21, theme.card, theme.purple, 5, 1.3)
            yield text(left + 11, top + 15, member, theme.ink, 12.5, "middle", 600)


def _soft_targets(x: float, y: float, heights: tuple[float, ...], label: str, theme: Theme) -> Iterable[str]:
    """Yield a small bar chart: a row's probabilities at one temperature."""
    yield f'<path d="M{x - 2:g} {y:g}h{11 * len(heights) + 1:g}" stroke="{theme.muted}" stroke-width="1.2"/>'
    for number, height in enumerate(heights):
        yield cell(x + 11 * number, y - height, 8, height, theme.green, 0.85)
    yield text(x + 5.5 * len(heights) - 2, y + 14, label, theme.muted, 11, "middle")


def stages(theme: Theme) -> str:
    """Return the picture of the three stages."""
    parts = [
        # One: cache.
        box(8, 46, 312, 262, theme.panel, theme.border, 12),
        heading(26, 74, "1", "cache", "run every teacher once", theme.blue, theme),
        *_transfer_set(32, 176, theme),
        text(65, 252, "transfer set", theme.ink, 12.5, "middle"),
        text(65, 269, "and its views", theme.muted, 11.5, "middle"),
        arrow("M110 198 C130 198 138 160 160 160", theme.muted),
        arrow("M110 202 C130 202 138 236 160 236", theme.muted),
        network(176, 124, 104, 70, (4, 5, 5, 3), theme.blue),
        network(176, 206, 104, 62, (3, 4, 4, 3), theme.blue),
        text(228, 293, "teachers", theme.ink, 12.5, "middle"),
        arrow("M292 159 C330 159 340 150 384 150", theme.blue),
        arrow("M292 237 C330 237 340 196 384 196", theme.blue),
        text(356, 138, "logits", theme.blue, 12.5, "middle", 600),
        # The store.
        *_store(390, 46, theme),
        text(488, 34, "sealed, checksummed, any T", theme.muted, 12.5, "middle"),
        # Two: cluster.
        box(656, 8, 296, 160, theme.panel, theme.border, 12),
        heading(674, 36, "2", "cluster", "find the classes that are confused", theme.purple, theme),
        *_covariance(676, 80, theme),
        arrow("M764 118 h34", theme.purple),
        *_chips(814, 80, theme),
        arrow("M592 150 C626 150 618 96 650 96", theme.purple, both=True),
        # Three: train.
        box(656, 186, 296, 160, theme.panel, theme.border, 12),
        heading(674, 214, "3", "train", "distil students, train specialists", theme.green, theme),
        *_soft_targets(678, 314, (50, 9, 4, 2), "T = 1", theme),
        *_soft_targets(736, 314, (31, 21, 16, 11), "T = 4", theme),
        arrow("M792 288 h28", theme.green),
        network(836, 258, 38, 48, (2, 3, 2), theme.green),
        network(892, 258, 38, 48, (2, 3, 2), theme.green),
        text(883, 328, "students", theme.ink, 12.5, "middle"),
        arrow("M588 196 C626 196 618 262 650 262", theme.green),
        arrow("M852 170 v12", theme.purple),
        text(862, 181.5, "sets", theme.purple, 12, weight=600),
        # The arrow that closes the loop.
        arrow("M700 350 C690 378 488 384 488 314", theme.green, dashed=True),
        text(556, 384, "generalist + specialists: one more teacher", theme.green, 12.5, "start", 600),
    ]
    return svg(
        960,
        396,
        "The three stages of logitstore",
        "Cache runs every teacher once over the transfer set and seals the logits in a store. Cluster finds "
        "the classes that are confused. Train distils students at any temperature; generalist and "
        "specialists, combined, go back into the store as one more teacher.",
        theme,
        parts,
    )


# The way of one row


@dataclass(frozen=True)
class Step:
    """One station of a row: what happens, and the file in which it happens."""

    name: str
    about: str
    folder: str
    file: str


WRITTEN = (
    Step("prepare", "input, view, digests", "pipeline/cache/", "rows.py"),
    Step("teacher", "logits z in float32", "pipeline/cache/", "capture.py"),
    Step("centre", "z − max z, cast", "pipeline/cache/", "device_logits.py"),
    Step("encode", "floats, codes or top-k", "storage/encodings/", "named.py"),
    Step("commit", "shard, then record", "storage/parts/", "part_writer.py"),
)
READ = (
    Step("order", "which row comes when", "storage/stream/", "order.py"),
    Step("window", "chunks and checksums", "storage/stream/", "window.py"),
    Step("batch", "rows of all teachers", "storage/stream/", "batches.py"),
    Step("decode", "float32 on the device", "pipeline/stream/", "batch.py"),
    Step("loss", "softmax(z / T)", "pipeline/losses/", "distillation.py"),
)
_STEP, _GAP, _TALL = 172, 18, 92


def _line(steps: tuple[Step, ...], y: float, colour: str, theme: Theme) -> Iterable[str]:
    """Yield a line of stations from left to right, joined by arrows."""
    for number, step in enumerate(steps):
        x = 8 + number * (_STEP + _GAP)
        yield box(x, y, _STEP, _TALL, theme.panel, colour, 10, 1.4)
        yield text(x + 13, y + 23, step.name, theme.ink, 15, weight=700)
        yield text(x + 13, y + 43, step.about, theme.muted, 12.5)
        yield text(x + 13, y + 66, step.folder, colour, 11, mono=True)
        yield text(x + 13, y + 81, step.file, colour, 11, mono=True)
        if number:
            yield arrow(f"M{x - _GAP + 2:g} {y + _TALL / 2:g}h{_GAP - 6:g}", colour)


def row(theme: Theme) -> str:
    """Return the picture of a row's way from the teacher to the loss."""
    first, last, middle = 8 + _STEP / 2, 8 + 4 * (_STEP + _GAP) + _STEP / 2, 160
    blocks = [
        cell(270 + 13 * n, middle - 8, 10.5, 16, theme.amber, 0.35 + 0.5 * (n * 7 % 11) / 10, 2)
        for n in range(37)
    ]
    parts = [
        text(8, 17, "written once", theme.blue, 13, weight=700),
        *_line(WRITTEN, 26, theme.blue, theme),
        arrow(f"M{last:g} 120 C{last:g} {middle} {last - 30:g} {middle} 774 {middle}", theme.blue),
        box(188, middle - 19, 580, 38, theme.panel, theme.amber, 10, 2),
        text(204, middle + 5, "store", theme.amber, 14, weight=700),
        *blocks,
        arrow(f"M182 {middle} C{first:g} {middle} {first:g} {middle} {first:g} {middle + 38}", theme.green),
        *_line(READ, 204, theme.green, theme),
        text(8, 316, "read by every student, in every epoch", theme.green, 13, weight=700),
    ]
    return svg(
        948,
        326,
        "The way of one row from the teacher to the loss",
        "Written once: prepare, teacher, centre, encode, commit. Read by every student: order, window, "
        "batch, decode, loss. The store lies between.",
        theme,
        parts,
    )


PICTURES: dict[str, Callable[[Theme], str]] = {"stages": stages, "row": row}


def pictures() -> dict[str, str]:
    """Return the content of every file, by its name."""
    return {
        f"{name}-{theme.name}.svg": draw(theme) for name, draw in PICTURES.items() for theme in (LIGHT, DARK)
    }


def main() -> None:
    """Write every picture beside this script."""
    for name, content in pictures().items():
        (HERE / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
