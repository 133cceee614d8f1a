"""The plots of README and docs, drawn from the JSON files that the benchmarks write into docs/figures/.

    loaders     rows/s of the stream beside other loaders      benchmarks/loaders.py --json …
    encoding    bytes a row against the worst KL at T = 4      benchmarks/encoding.py --json …

Run `python docs/images/plots.py` after a benchmark. Each plot is written for light and for dark pages.
"""

import json
from collections.abc import Callable
from math import log10
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
from draw import DARK, LIGHT, Theme
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

HERE = Path(__file__).resolve().parent
FIGURES = HERE.parent / "figures"
Figures = dict[str, Any]

# Text stays text, in the reader's own font; ids are the same in every run.
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "logitstore",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
}


def read_figures(name: str) -> Figures:
    """Return the figures of a benchmark."""
    figures: Figures = json.loads((FIGURES / f"{name}.json").read_text(encoding="utf-8"))
    return figures


def _axes(theme: Theme, width: float, height: float) -> tuple[Figure, Axes]:
    """Return empty axes without a frame, on a page that shines through."""
    figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=theme.muted, length=0)
    return figure, axes


# rows/s of the stream beside other loaders


def _loader_name(row: Figures) -> str:
    """Return the label of a bar; a way that is not compared names itself."""
    compared = row.get("compared", True)
    return str(row["loader"]) if compared else f"{row['loader']}, {row['way']}"


def loaders(theme: Theme) -> Figure:
    """Draw a bar a loader, the fastest on top, and the ratio of the stream to it in a column on the right.

    Pale bars are ways that the benchmark reports without comparing: some are fast because they check nothing.
    """
    rows = sorted(read_figures("loaders")["rows"], key=lambda row: row["rows_per_second"])
    figure, axes = _axes(theme, 8.4, 0.34 * len(rows) + 0.9)
    longest = max(row["rows_per_second"] for row in rows)
    column = 1.72 * longest
    for y, row in enumerate(rows):
        ours, compared = row["loader"] == "logitstore", row.get("compared", True)
        colour, ink = theme.blue if ours else theme.muted, theme.ink if compared else theme.muted
        weight = "bold" if ours else "normal"
        axes.barh(y, row["rows_per_second"], height=0.64, color=colour, alpha=1 if compared else 0.35)
        rate = f"{row['rows_per_second']:,}"
        axes.text(
            row["rows_per_second"] + 0.012 * longest, y, rate, va="center", color=ink, fontweight=weight
        )
        if not ours:
            ratio = f"{row['ratio']:g}  ({row['ratio_low']:g} … {row['ratio_high']:g})"
            axes.text(column, y, ratio, va="center", ha="right", color=ink)
    top = len(rows) - 0.25
    axes.text(0, top, "rows/s", color=theme.muted)
    axes.text(column, top, "logitstore / loader", ha="right", color=theme.muted)
    axes.set_yticks(range(len(rows)), [_loader_name(row) for row in rows])
    for label, row in zip(axes.get_yticklabels(), rows, strict=True):
        label.set_color(theme.ink if row.get("compared", True) else theme.muted)
        label.set_fontweight("bold" if row["loader"] == "logitstore" else "normal")
    axes.set_xlim(0, column)
    axes.set_ylim(-0.5, len(rows) + 0.2)
    axes.set_xticks([])
    return figure


# Bytes against KL

TEMPERATURE = "4"
_FAMILIES = (
    # how its names begin; its label; where the label stands; its colour
    ("budget", "error budget", "blue"),
    ("top-%d and tail", "top-k and tail", "green"),
    ("top-%d p, spread evenly", "top-k, spread evenly", "amber"),
    ("top-%d ln p, renormalised", "top-k, renormalised", "purple"),
    ("float16", "float16", "ink"),
)


def _family(name: str) -> str | None:
    """Return the family that a way of storing logits belongs to."""
    for form, label, _ in _FAMILIES:
        prefix, _, rest = form.partition("%d")
        if name.startswith(prefix) and name.endswith(rest):
            return label
    return None


def _point_name(name: str) -> str:
    """Return the label of one point: its budget or its k.

    >>> _point_name("budget 0.001 (uint16)"), _point_name("top-64 and tail"), _point_name("float16")
    ('1e-3', 'k = 64', '')
    """
    if name.startswith("budget"):
        mantissa, exponent = f"{float(name.split()[1]):.0e}".split("e")
        return f"{mantissa}e{int(exponent)}"
    return f"k = {name.removeprefix('top-').split()[0]}" if name.startswith("top-") else ""


def _power_of_ten(value: float, _: object = None) -> str:
    """Return the label of a tick.

    >>> _power_of_ten(0.1), _power_of_ten(1e-5)
    ('0.1', '10⁻⁵')
    """
    exponent = round(log10(value))
    return f"{value:g}" if exponent > -3 else "10⁻" + "⁰¹²³⁴⁵⁶⁷⁸⁹"[-exponent]


def encoding(theme: Theme) -> Figure:
    """Draw a point for every way of storing logits, joined within a family. Down and left is better."""
    rows = read_figures("encoding")["rows"]
    figure, axes = _axes(theme, 8.4, 4.1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    for _, label, attribute in _FAMILIES:
        members = [row for row in rows if _family(row["name"]) == label]
        members.sort(key=lambda row: row["bytes"])
        x = [row["bytes"] for row in members]
        y = [row[f"worst_kl_{TEMPERATURE}"] for row in members]
        colour = getattr(theme, attribute)
        axes.plot(x, y, marker="o", markersize=7, linewidth=1.8, color=colour)
        # Of two families that lie on each other, one has its labels above and one below.
        below = label == "top-k and tail"
        beside = label == "error budget"
        for row, a, b in zip(members, x, y, strict=True):
            axes.annotate(
                _point_name(row["name"]),
                (a, b),
                xytext=(8, 4) if beside else (0, -15) if below else (0, 8),
                textcoords="offset points",
                ha="left" if beside else "center",
                color=theme.muted,
                fontsize=8.5,
            )
        last = (x[0], y[0]) if beside else (x[-1], y[-1])
        side = -10 if beside else 10
        axes.annotate(
            label,
            last,
            xytext=(side, -4 if not below else -8),
            textcoords="offset points",
            ha="right" if beside else "left",
            color=colour,
            fontsize=10.5,
            fontweight="bold",
        )
    axes.grid(True, which="major", color=theme.border, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlim(40, 4200)
    axes.set_ylim(4e-8, 40)
    axes.set_xticks([50, 100, 200, 500, 1000, 2000, 4000])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(_power_of_ten))
    axes.yaxis.set_minor_locator(NullLocator())
    exact = next(row["bytes"] for row in rows if row["name"] == "float32")
    axes.text(4100, 8e-8, f"float32: exact, {exact:,.0f} bytes", ha="right", color=theme.muted, fontsize=8.5)
    axes.set_xlabel("bytes a row of 1,000 classes, behind the codec", color=theme.muted)
    axes.set_ylabel(f"KL to the teacher, worst row, T = {TEMPERATURE} (nats)", color=theme.muted)
    return figure


PLOTS: dict[str, Callable[[Theme], Figure]] = {"loaders": loaders, "encoding": encoding}


def save(figure: Figure, path: Path) -> None:
    """Write a plot as SVG without a date, and let a reader's own font show it."""
    figure.savefig(path, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    plt.close(figure)
    fonts = "system-ui, -apple-system, &quot;Segoe UI&quot;, &quot;DejaVu Sans&quot;, Arial, sans-serif"
    path.write_text(
        path.read_text(encoding="utf-8").replace("'DejaVu Sans', sans-serif", fonts), encoding="utf-8"
    )


def main(folder: Path = HERE) -> None:
    """Write every plot for light and dark pages."""
    with plt.rc_context(STYLE):
        for name, draw in PLOTS.items():
            for theme in (LIGHT, DARK):
                save(draw(theme), folder / f"{name}-{theme.name}.svg")


if __name__ == "__main__":
    main()
