"""The plots of README and docs, drawn from the JSON files that the benchmarks write into docs/figures/.

    loaders     rows/s of the stream beside other loaders      benchmarks/loaders.py --json …
    encoding    bytes a row against the worst KL at T = 4      benchmarks/encoding.py --json …
    transform   bytes a row against KL, on real logits         benchmarks/transform.py --json …

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
    _bare(axes, theme)
    return figure, axes


def _bare(axes: Axes, theme: Theme) -> None:
    """Take frame, background and ticks from axes."""
    axes.patch.set_alpha(0)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.tick_params(colors=theme.muted, length=0)


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


# Bytes against KL on real logits, all encodings

_PANELS = {
    "Omniglot": "Omniglot's characters, {classes} classes",
    "language model": "a language model, {classes} columns",
}
"""Sets of logits of the figure, and the titles of their panels."""
_BUDGET_TEMPERATURES = ("1", "2", "4", "8")
"""Temperatures of which the largest KL is drawn: those of a transform's guarantee."""
_ENCODINGS = {
    # name in the figures: label, colour, offset of the label from the last mean in points, its alignment
    "transform": ("transform", "blue", (16, -17), "right"),
    "budget": ("error budget", "purple", (16, -17), "right"),
    "top-k": ("top-k", "green", (10, 2), "left"),
    "float16": ("float16", "ink", (-10, 3), "right"),
}


def _largest(row: Figures, statistic: str) -> float:
    """Return the largest of a statistic over the temperatures."""
    return float(max(row[f"{statistic}_kl_{temperature}"] for temperature in _BUDGET_TEMPERATURES))


def _parameter_name(row: Figures) -> str:
    """Return the label of one point: its budget or its k.

    >>> [_parameter_name({"parameter": one}) for one in (0.001, 16, 64, None)]
    ['1e-3', 'k = 16', '64', '']
    """
    parameter = row["parameter"]
    if parameter is None:
        return ""
    if parameter < 1:
        return f"1e{round(log10(parameter))}"
    return f"k = {parameter}" if parameter < 50 else str(parameter)  # larger ones lie closer together


def _draw_encoding(axes: Axes, members: list[Figures], encoding: str, theme: Theme) -> None:
    """Draw the points of one encoding: filled for the worst row, open for the mean of the rows."""
    label, attribute, offset, align = _ENCODINGS[encoding]
    colour, x = getattr(theme, attribute), [row["bytes"] for row in members]
    worst, mean = ([_largest(row, name) for row in members] for name in ("worst", "mean"))
    axes.plot(x, worst, marker="o", markersize=7, linewidth=1.8, color=colour)
    axes.plot(
        x, mean, marker="o", markersize=4.5, linewidth=1, linestyle="--", color=colour, markerfacecolor="none"
    )
    for row, a, b in zip(members, x, worst, strict=True):
        above = encoding == "top-k"
        axes.annotate(
            _parameter_name(row),
            (a, b),
            xytext=(0, 8) if above else (8, 3),
            textcoords="offset points",
            ha="center" if above else "left",
            color=theme.muted,
            fontsize=8.5,
        )
    axes.annotate(
        label,
        (x[-1], mean[-1]),
        xytext=offset,
        textcoords="offset points",
        ha=align,
        color=colour,
        fontsize=10.5,
        fontweight="bold",
    )


def transform(theme: Theme) -> Figure:
    """Draw a panel a set of logits, with a line an encoding. Down and left is better."""
    rows = read_figures("transform")["rows"]
    figure, panels = plt.subplots(1, 2, figsize=(8.4, 4.1), sharey=True, layout="constrained")
    figure.patch.set_alpha(0)
    for axes, (name, title) in zip(panels, _PANELS.items(), strict=True):
        _bare(axes, theme)
        axes.set_xscale("log")
        axes.set_yscale("log")
        of_set = [row for row in rows if row["data"] == name]
        for encoding in _ENCODINGS:
            members = [row for row in of_set if row["encoding"] == encoding]
            _draw_encoding(axes, sorted(members, key=lambda row: row["bytes"]), encoding, theme)
        axes.set_title(title.format(classes=f"{of_set[0]['classes']:,}"), color=theme.ink, fontsize=10.5)
        axes.grid(True, which="major", color=theme.border, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.set_xlim(20, 3200)
        axes.set_ylim(8e-9, 20)
        axes.set_yticks([10.0**exponent for exponent in range(-7, 2)])
        axes.set_xticks([20, 50, 100, 200, 500, 1000, 2000])
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(_power_of_ten))
        axes.yaxis.set_minor_locator(NullLocator())
    figure.supxlabel("bytes a row, behind the codec", color=theme.muted, fontsize=10)
    panels[0].set_ylabel("KL to the teacher, T = 1 … 8 (nats)", color=theme.muted)
    panels[0].text(
        22,
        1.5e-8,
        "filled: worst row\nopen: mean of the rows",
        color=theme.muted,
        fontsize=8.5,
        linespacing=1.4,
    )
    return figure


PLOTS: dict[str, Callable[[Theme], Figure]] = {
    "loaders": loaders,
    "encoding": encoding,
    "transform": transform,
}


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
