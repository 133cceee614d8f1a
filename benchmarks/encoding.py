"""Bytes, fidelity and speed of each way to store logits.

1. Every encoding of ours and the rivals' ways (rival_encodings.py), on the same logits: bytes a row behind
   the codec, KL to the teacher at five temperatures, rows/s. The logits are generated, or come from two
   trained nets (real_logits.py).
2. The bars: each with a figure of this run, met or missed.

KL(teacher ‖ stored) is in nats. It is computed here in float64 softmaxes, apart from the product's own. Bytes
are those of the chunks and their checksums, cut as a store cuts them. `seen`, eight bytes a row of every
capture, is left out. Rows/s are of one thread: logits in memory to compressed chunks, and back to float32
logits at T = 4. The first includes measuring the error, if the encoding records it.

Alone: python benchmarks/encoding.py [--data synthetic] [--json docs/figures/encoding.json]
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from figures import write_figures
from numpy.typing import NDArray
from real_logits import mnist_logits, omniglot_logits, synthetic_logits
from rival_encodings import EvenlySpread, Renormalised, ZstdFloat16, log_softmax
from timing import compare
from ways import ROWS_AT_ONCE, Measured, Way, always, budget_for, chunk_rows, kl_of, measure, ours, theirs

import logitstore
from logitstore.storage.encodings.encoding import Encoding
from logitstore.storage.encodings.error_budget import ErrorBudget
from logitstore.storage.encodings.half import FLOATS, rounding_error
from logitstore.storage.encodings.top_k import TopK
from logitstore.storage.errors import ConfigError
from logitstore.storage.format.constants import TEMPERATURES

REAL = {"MNIST": mnist_logits, "Omniglot": omniglot_logits}
DATA = ("synthetic", *REAL)
"""The measured logits."""
BUDGETS = (1e-2, 1e-3, 1e-4)
TOP_K = (16, 64, 100)
OTHERS = ("top-100 p, spread evenly", "top-128 ln p, renormalised")
"""The two rival ways, with the k that their authors use."""
CODE_BYTES, ENTROPY_CHUNK_BYTES = 1.03, 16
READ_ROUNDS = 9
ADVERSARIAL_ROWS, ADVERSARIAL_CLASSES = 200, 1000


# The table


def ways_for(logits: NDArray[np.float32]) -> list[Way]:
    """Return every way that can store these logits."""
    num_rows, num_classes = logits.shape
    grid, rows = chunk_rows(num_rows, num_classes)

    def own(name: str, encoding: Encoding) -> Way:
        return ours(name, encoding, grid, num_classes)

    budgets = [budget_for(max_kl, logits, 0.0, rows) for max_kl in BUDGETS]
    fitting = [k for k in TOP_K if k <= num_classes]
    return [
        own("float32", FLOATS["float32"]),
        own("float16", FLOATS["float16"]),
        *(own(_budget_name(budget), budget) for budget in budgets),
        *(own(f"top-{k} and tail", TopK(k)) for k in fitting),
        *(theirs(f"top-{k} p, spread evenly", EvenlySpread(k)) for k in fitting if k != 100),
        theirs(OTHERS[0], EvenlySpread(100)),
        theirs(OTHERS[1], Renormalised(128)),
    ]


def _budget_name(budget: ErrorBudget) -> str:
    shifted = f" <<{budget.shift}" if budget.shift else ""
    return f"budget {budget.max_kl:g} ({budget.dtype}{shifted})"


def table(about: str, logits: NDArray[np.float32]) -> dict[str, Measured]:
    """Measure every way on these logits, and print each line as soon as it is complete."""
    _, rows = chunk_rows(*logits.shape)
    temperatures = " ".join(f"{f'T={t:g}':>8s}" for t in TEMPERATURES)
    print(f"\n  {about}")
    print(f"  {len(logits):,} rows in chunks of {rows}; KL(teacher ‖ stored), nats")
    print(
        f"  {'':35s} {'B/row':>8s} {'+peak':>8s} {'all':>8s}   {'worst row':44s}   {'mean':44s} {'rows/s':>15s}"
    )
    print(f"  {'':62s}   {temperatures}   {temperatures} {'encode':>9s} {'decode':>9s}")
    found = {}
    for way in ways_for(logits):
        found[way.name] = measure(way, logits, rows)
        print(row(found[way.name]), flush=True)
    return found


def row(found: Measured) -> str:
    """Format one line of the table."""
    worst = " ".join(f"{kl:8.1e}" for kl in found.kl.max(axis=0))
    mean = " ".join(f"{kl:8.1e}" for kl in found.kl.mean(axis=0))
    sizes = f"{found.needed_bytes:8.1f} {found.row_bytes:8.1f} {sum(found.bytes.values()):8.1f}"
    return f"  {found.way.name:35s} {sizes}   {worst}   {mean} {found.encode_rows:9,.0f} {found.decode_rows:9,.0f}"


# What it must show


def bar(what: str, figure: str, wanted: str, met: bool) -> None:
    """Print a figure beside its bar."""
    print(f"  {'met   ' if met else 'MISSED'}  {what:122s} {figure:>14s}   (bar: {wanted})", flush=True)


def named(found: Mapping[str, Measured], prefix: str) -> Measured:
    """Return the way whose name begins with `prefix`."""
    return next(measured for name, measured in found.items() if name.startswith(prefix))


def rows_over(kl: NDArray[np.float64], budget: ErrorBudget) -> tuple[int, float]:
    """Count the rows beyond the bound at some temperature, and return the largest share of the bound."""
    share = kl / np.array([budget.bound(t) for t in TEMPERATURES])
    return int((share > 1).any(axis=1).sum()), float(share.max())


def show_budgets(name: str, logits: NDArray[np.float32], found: Mapping[str, Measured]) -> None:
    """Print bar 1: no row exceeds its budget, against the given logits and against the teacher's."""
    over, worst = 0, 0.0
    for max_kl in BUDGETS:
        measured = named(found, f"budget {max_kl:g}")
        assert isinstance(measured.way.encoding, ErrorBudget)
        rows, share = rows_over(measured.kl, measured.way.encoding)
        over, worst = over + rows, max(worst, share)
    what = f"1. {name}: rows over a budget, of float32 ({len(logits):,} rows x 3; worst {worst:.3f} of it)"
    bar(what, str(over), "0", over == 0)
    for kind, (over, worst) in rows_over_from_float16(logits).items():
        what = f"1. {name}: rows over a budget, of float16, to {kind} (worst {worst:.3f} of it)"
        bar(what, str(over), "0", over == 0)


def rows_over_from_float16(logits: NDArray[np.float32]) -> dict[str, tuple[int, float]]:
    """Count the same for budgets made from a float16 capture, by the logits that the rows are compared with.

    A budget smaller than the capture's own rounding is refused; the table has a line for it.
    """
    _, chunk = chunk_rows(*logits.shape)
    source = rounded_to_float16(logits)
    error = rounding_error("float16", float(-source.min()))
    over, worst = {"the source": 0, "the teacher": 0}, {"the source": 0.0, "the teacher": 0.0}
    for max_kl in BUDGETS:
        try:
            budget = budget_for(max_kl, source, error, chunk)
        except ConfigError as refused:
            print(f"          budget {max_kl:g} of float16 is refused, as required: {refused.expected}")
            continue
        for start in range(0, len(source), chunk):
            part = slice(start, start + chunk)
            decoded = budget.decode(budget.encode(source[part], start, "benchmark"))
            for kind, exact in (("the source", source[part]), ("the teacher", logits[part])):
                rows, share = rows_over(kl_of(exact, always(decoded)), budget)
                over[kind], worst[kind] = over[kind] + rows, max(worst[kind], share)
    return {kind: (over[kind], worst[kind]) for kind in over}


def rounded_to_float16(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round logits as a float16 capture does."""
    encoding = FLOATS["float16"]
    return encoding.decode(encoding.encode(logits, 0, "benchmark"))


def adversarial_logits(budget: ErrorBudget, rounded: bool) -> NDArray[np.float32]:
    """Make rows close to a budget: half of a row's mass comes back too high by ε, half too low by ε.

    The bound is tight for two errors ±ε of equal mass. Many random logits are drawn in a narrow window. The
    rows take those with the largest errors in either direction. One class of each row is 0, where the codes
    begin.

    rounded: pass the logits through float16 first, which adds half of its step at the window. The window then
    lies far below 0, and has its mass at high temperatures.
    """
    random = np.random.default_rng(1)
    candidates, pool, half = 400_000, 4000, ADVERSARIAL_CLASSES // 2
    low = -12.9 if rounded else -0.9
    row = random.uniform(low, low + 0.8, (1, candidates)).astype(np.float32)
    row[0, 0] = 0
    given = rounded_to_float16(row) if rounded else row
    error = (budget.decode(budget.encode(given, 0, "benchmark")) - row)[0]
    order = np.argsort(error)
    rows = np.zeros((ADVERSARIAL_ROWS, ADVERSARIAL_CLASSES), np.float32)
    for number in range(ADVERSARIAL_ROWS):
        rows[number, 1:half] = row[0, random.choice(order[:pool], half - 1, replace=False)]
        rows[number, half:] = row[0, random.choice(order[-pool:], half, replace=False)]
    return rows


def show_adversaries() -> None:
    """Print bar 1 on rows that are made to break a budget.

    Such rows must break a budget that ignores its source's rounding.
    """
    over, worst, broken, by = 0, 0.0, 0, 0.0
    for max_kl in BUDGETS:
        for rounded, heeded in ((False, True), (True, True), (True, False)):
            error = rounding_error("float16", 12.9) if rounded and heeded else 0.0
            budget = ErrorBudget(max_kl, source_error=error)
            teacher = adversarial_logits(budget, rounded)
            given = rounded_to_float16(teacher) if rounded else teacher
            decoded = budget.decode(budget.encode(given, 0, "benchmark"))
            rows, share = rows_over(kl_of(teacher, always(decoded)), budget)
            if heeded or not rounded:
                over, worst = over + rows, max(worst, share)
            else:
                broken, by = broken + rows, max(by, share)
    total = 2 * len(BUDGETS) * ADVERSARIAL_ROWS
    what = f"1. adversarial rows over a budget, of float32 and float16 ({total:,}; worst {worst:.3f} of it)"
    bar(what, str(over), "0", over == 0)
    what = f"1. adversarial rows over a budget that ignores float16's rounding (worst {by:.2f} of it)"
    bar(what, str(broken), "> 0", broken > 0)


def show_sizes(logits: NDArray[np.float32], found: Mapping[str, Measured], bars: bool) -> None:
    """Print bar 2: codes against their entropy, and budget 1e-2 against float16."""
    _, rows = chunk_rows(*logits.shape)
    for max_kl in BUDGETS:
        measured = named(found, f"budget {max_kl:g}")
        assert isinstance(measured.way.encoding, ErrorBudget)
        budget = measured.way.encoding
        codes = budget.encode(logits, 0, "benchmark")["logits"] >> budget.shift
        counts = np.bincount(codes.reshape(-1))
        share = counts[counts > 0] / codes.size
        entropy = codes.size * -(share * np.log2(share)).sum() / 8
        allowed = entropy + ENTROPY_CHUNK_BYTES * -(-len(logits) // rows)
        ratio = measured.bytes["logits"] * len(logits) / allowed
        what = f"2. {measured.way.name}: bytes of the codes / (order-0 entropy + {ENTROPY_CHUNK_BYTES} B a chunk)"
        _figure(what, ratio, CODE_BYTES, bars)
    ten, half = named(found, "budget 0.01"), found["float16"]
    what = (
        f"2. budget 1e-2 / float16, bytes a row with `peak` (with `error` too: {_all(ten) / _all(half):.3f})"
    )
    _figure(what, ten.row_bytes / half.row_bytes, 0.36, bars)


def _all(found: Measured) -> float:
    return sum(found.bytes.values())


def _figure(what: str, ratio: float, most: float, bars: bool) -> None:
    if bars:
        bar(what, f"{ratio:.4f}", f"<= {most}", ratio <= most)
    else:
        print(f"          {what:122s} {ratio:14.4f}   (no bar)")


def show_others(found: Mapping[str, Measured], bars: bool) -> None:
    """Print bar 3: the worst row of budget 1e-2 against the rivals' worst rows, at T = 2 and 4."""
    ten = named(found, "budget 0.01").kl.max(axis=0)
    for other in OTHERS:
        for temperature in (2.0, 4.0):
            column = TEMPERATURES.index(temperature)
            closer = found[other].kl.max(axis=0)[column] / ten[column]
            what = f"3. worst KL at T = {temperature:g}, {other} / budget 1e-2"
            if bars:
                bar(what, f"{closer:.1f}", ">= 10", closer >= 10)
            else:
                print(f"          {what:122s} {closer:14.1f}   (no bar: all classes fit into its k)")


def floor_of_top_k(logits: NDArray[np.float32], k: int) -> NDArray[np.float64]:
    """Compute the smallest mean KL of an even tail at each T: top k and the mass of the others exact."""
    total = np.zeros(len(TEMPERATURES))
    left_out = logits.shape[1] - k
    for start in range(0, len(logits), ROWS_AT_ONCE):
        piece = -np.sort(-logits[start : start + ROWS_AT_ONCE], axis=1)
        for column, temperature in enumerate(TEMPERATURES):
            tail = log_softmax(piece, temperature)[:, k:]
            mass = np.exp(tail).sum(axis=1, keepdims=True)
            total[column] += (np.exp(tail) * (tail - np.log(mass / left_out))).sum()
    return total / len(logits)


def show_tails(logits: NDArray[np.float32], found: Mapping[str, Measured]) -> None:
    """Print bar 4: top-k with our tail, against the best even tail and against the rivals' tail."""
    for k in TOP_K:
        if k >= logits.shape[1]:
            continue
        mean = found[f"top-{k} and tail"].kl.mean(axis=0)
        over = mean / floor_of_top_k(logits, k)
        what = f"4. top-{k} and tail: mean KL / mean KL of the exact tail spread evenly; largest of five T"
        bar(what, f"{over.max():.4f}", "<= 1.02", bool(over.max() <= 1.02))
        against = mean / found[f"top-{k} p, spread evenly"].kl.mean(axis=0)
        each = " ".join(f"{ratio:.3g}" for ratio in against)
        what = f"4. top-{k} and tail: mean KL / top-{k} p, spread evenly; at each T {each}"
        bar(what, f"{against.max():.6f}", "<= 1", bool(against.max() <= 1))


def show_reading(logits: NDArray[np.float32]) -> None:
    """Print bar 5: reading from a disk (page cache hot), all rows to float32, block by block."""
    num_rows, num_classes = logits.shape
    grid, rows = chunk_rows(num_rows, num_classes)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = logitstore.create_store(
            folder / "store.zarr", num_classes=num_classes, digests=np.zeros(num_rows, np.uint64)
        )
        encodings: dict[str, Any] = {"raw": "float16", "budget": budget_for(1e-2, logits, 0.0, rows)}
        for capture, encoding in encodings.items():
            with store.capture(capture, provenance={}, encoding=encoding) as writer:
                for block in writer.missing_blocks():
                    writer.write(block, logits[block.start : block.stop])
        assert store.block_rows == grid.block_rows
        centred = store.teachers["raw"].read_stored(slice(None))["logits"]
        zipped = ZstdFloat16(centred, folder, rows, store.block_rows)

        def reading(capture: str) -> Callable[[], None]:
            reader = store.teachers[capture]

            def read() -> None:
                for block in map(grid.rows, range(grid.num_blocks)):
                    reader.read(slice(block.start, block.stop))

            return read

        def left_as_it_is() -> None:
            for block in map(grid.rows, range(grid.num_blocks)):
                store.teachers["raw"].read_stored(slice(block.start, block.stop))

        print(
            f"          zstd float16 takes {zipped.num_bytes / num_rows:.0f} B/row; page cache hot, seconds of each in turn"
        )
        for other, read, least in (
            ("raw float16", reading("raw"), 0.35),
            ("zstd float16 by zarr-python", zipped.read_by_zarr, 1.5),
            ("zstd float16 by a loop of our own, unchecked", zipped.read_by_loop, 1.5),
            ("raw float16, not converted to float32", left_as_it_is, None),
        ):
            found = compare(read, reading("budget"), rounds=READ_ROUNDS)
            spread = f"{found.low:.2f} … {found.high:.2f}; {found.theirs:.3f} and {found.ours:.3f} s"
            what = f"5. rows/s of reading budget 1e-2 / of {other} ({spread})"
            if least is None:
                print(f"          {what:122s} {found.ratio:14.2f}   (no bar)")
            else:
                bar(what, f"{found.ratio:.2f}", f">= {least}", found.ratio >= least)


def by_temperature(name: str, kl: NDArray[np.float64]) -> dict[str, float]:
    """Return a column for each temperature, three figures long."""
    return {f"{name}_{t:g}": float(f"{figure:.3g}") for t, figure in zip(TEMPERATURES, kl, strict=True)}


def write_json(path: Path, about: str, found: Mapping[str, Measured]) -> None:
    """Write bytes and KL of every way. Rows/s are left out, as only they depend on the machine."""
    rows = [
        {
            "name": measured.way.name,
            "bytes": round(measured.row_bytes, 1),
            "all_bytes": round(sum(measured.bytes.values()), 1),
            **by_temperature("worst_kl", measured.kl.max(axis=0)),
            **by_temperature("mean_kl", measured.kl.mean(axis=0)),
        }
        for measured in found.values()
    ]
    units = {
        "bytes": "bytes a row behind the codec, `peak` included",
        "all_bytes": "the same with `error`",
        "worst_kl_T, mean_kl_T": "KL(teacher ‖ stored) at temperature T, nats: worst row, mean of the rows",
    }
    write_figures(path, about, units, rows)


def main(data: Sequence[str] = DATA, json: Path | None = None) -> None:
    """Print the tables and their bars.

    data: the logits to measure. json: the file for the first table, from which the plot is drawn.
    """
    print("encodings: bytes, KL and speed of each way to store logits")
    print(
        "  probability 0 counts as 2^-24, the smallest float16: of top-k p before re-tempering, of top-k ln p at each"
    )
    print("  T (as stored, the KL of top-k ln p is infinite for every class that is left out)")
    for name in data:
        if name == "synthetic":
            logits, about = (
                synthetic_logits(),
                "synthetic, 1000 classes: normal, sd 2.5, five classes raised by 8",
            )
        else:
            real = REAL[name]()
            if isinstance(real, str):
                print(f"\n  {real}")
                continue
            logits, about = real.logits, real.about
        found = table(about, logits)
        if json is not None and name == data[0]:
            write_json(json, f"{len(logits):,} rows; {about}", found)
        print()
        show_budgets(name, logits, found)
        if name == "synthetic":
            show_adversaries()
        show_sizes(logits, found, bars=name == "synthetic")
        show_others(found, bars=logits.shape[1] > 128)
        show_tails(logits, found)
        if name == "synthetic":
            show_reading(logits)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", action="append", choices=DATA, help="one of the logits; all by default")
    parser.add_argument("--json", type=Path, help="file for the first table, from which the plot is drawn")
    arguments = parser.parse_args()
    main(arguments.data or DATA, arguments.json)
