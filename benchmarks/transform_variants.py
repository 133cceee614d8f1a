"""Variants of the transform encoding that were tried: bytes a row beside those of the encoding as it is.

    steps       a step for each component, by reverse water-filling and by a search over groups of components
    rest        the part of a row's budget that is left: rounding towards 0, finer steps of `refine`
    codecs      levels and blocks of the codec of the codes, the entropy that they leave, digits of `error`
    views       view v predicted from the decoded view 0
    members     one basis for all members of an ensemble, and members predicted from one of them

Each basis is made of 2,048 calibration rows, and bytes are measured on rows beside them: codes and `refine` in chunks of
1,024 rows, in the codecs of the store. Every row keeps its budget at T = 1, 2, 4, 8 and its largest class, except for those
that are counted as escaped. Views and members are those of Omniglot, and take minutes.

Alone: python benchmarks/transform_variants.py [--only steps] [--logits NAME=FILE.npy]
FILE.npy: float32 (rows, classes), as recogniser_rows.py and language_rows.py beside this script make them.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from time import perf_counter

import numpy as np
from numpy.typing import NDArray
from omniglot_variants import member_logits, view_logits
from transform import CALIBRATION_ROWS, data

from logitstore.storage.encodings.basis import Basis
from logitstore.storage.encodings.divergence import coarser_up, error_of_kl
from logitstore.storage.encodings.products import one_thread, tiled_product
from logitstore.storage.encodings.refine import ESCAPED, GUESS, Refined, Softened, refine_rows, step_factor
from logitstore.storage.encodings.transform import TEMPERATURES, Transform, zigzag
from logitstore.storage.format import codec
from logitstore.storage.format.codec import COLUMNS, ZSTD, compress
from logitstore.storage.random import philox_permutation

CHUNK_ROWS, ROWS = 1024, 4096
BUDGETS = (1e-2, 1e-3)
MARGIN = 1 - 2**-6
"""Share of the budget that a row may use, as the product has it."""
TRIALS = 10
OFFSETS = np.array(
    [0, 0.03, 0.06, 0.09, 0.12, 0.15, 0.18, 0.21, 0.25, 0.29, 0.33, 0.37, 0.41, 0.45, 0.5], "f4"
)
"""Distances of a rounding threshold from the middle between two codes, in steps."""

Rows = NDArray[np.float32]


def split(logits: Rows, rows: int = ROWS) -> tuple[Rows, Rows]:
    """Return calibration rows and other rows, both centred on their largest logit."""
    order = philox_permutation(len(logits), 0, stream=0, counter=0)
    cut = CALIBRATION_ROWS
    return centred(logits[np.sort(order[:cut])]), centred(logits[np.sort(order[cut : cut + rows])])


def centred(logits: Rows) -> Rows:
    """Return logits whose largest is 0."""
    return np.asarray(logits - logits.max(axis=1, keepdims=True), np.float32)


def basis_of(calibration: Rows, max_kl: float) -> Basis:
    """Make the basis of calibration rows, as the product does."""
    basis = Transform(max_kl).calibrated(calibration, "benchmark").basis
    assert basis is not None
    return basis


def chunked(make: Callable[[NDArray[np.generic]], bytes], values: NDArray[np.generic]) -> float:
    """Return the bytes a row of an array in chunks."""
    starts = range(0, len(values), CHUNK_ROWS)
    parts = (np.ascontiguousarray(values[start : start + CHUNK_ROWS]) for start in starts)
    return sum(len(make(part)) for part in parts) / len(values)


def row_bytes(found: Refined) -> float:
    """Return the bytes a row of codes and `refine`."""
    codes, refine = zigzag(found.codes), found.refine
    return chunked(lambda part: compress(COLUMNS, part), codes) + chunked(
        lambda part: compress(ZSTD, part), refine
    )


def coded(rows: Rows, basis: Basis, max_kl: float) -> Refined:
    """Round rows in a basis, as the product does."""
    with one_thread:
        return refine_rows(rows, basis.project(rows), basis, max_kl, TEMPERATURES)


def against(size: float, whole: float) -> str:
    """Return bytes, and their difference in percent."""
    return f"{size:8.1f} {100 * size / whole - 100:+6.1f} %"


# Steps by component


def shares(basis: Basis, found: Refined, rows: Rows) -> NDArray[np.float64]:
    """Return the mean share of each component in a row's KL at its binding temperature, times the components.

    A code is off by up to half a step: the KL of a component is step² / 24 · bᵀFb / T², F the row's Fisher information.
    """
    axes = basis.basis.astype(np.float64)
    total, binding = np.zeros(len(axes)), np.nan_to_num(found.kl, nan=-1).argmax(axis=1)
    for column, temperature in enumerate(TEMPERATURES):
        bound = np.flatnonzero((binding == column) & (found.refine != ESCAPED))
        for first in range(0, len(bound), 256):
            p = np.exp(rows[bound[first : first + 256]] / temperature)
            p /= p.sum(axis=1, keepdims=True)
            kl = np.square(basis.step) * (p @ np.square(axes).T - np.square(p @ axes.T))
            total += (kl / kl.sum(axis=1, keepdims=True)).sum(axis=0)
    return total * len(axes) / (found.refine != ESCAPED).sum()


def entropy(codes: NDArray[np.generic]) -> NDArray[np.float64]:
    """Return the entropy of each column, bits."""
    counts = (np.unique(column, return_counts=True)[1] / len(codes) for column in codes.T)
    return np.array([-(share * np.log2(share)).sum() for share in counts])


def water_filled(calibration: Rows, basis: Basis, max_kl: float, power: float) -> Basis:
    """Return steps at which each bit of each component buys the same KL: step² · share ∝ bits lost a doubling of the step."""
    found = coded(calibration, basis, max_kl)
    with one_thread:
        in_steps = basis.project(calibration) / (step_factor(found.refine)[:, None] * basis.step)
    kept = in_steps[found.refine != ESCAPED]
    slope = 2 * (entropy(np.rint(kept * 2**0.25)) - entropy(np.rint(kept / 2**0.25)))
    slope = np.maximum(slope, 0) + 0.02  # components that hardly ever have a code
    factor = np.clip(slope / slope.mean() / shares(basis, found, calibration), 1 / 16, 16) ** (power / 2)
    return replace(basis, step=(basis.step * factor).astype(np.float32))


def searched(calibration: Rows, basis: Basis, max_kl: float, groups: int = 8) -> Basis:
    """Try coarser and finer steps for groups of neighbouring components, one after another, by the calibration's bytes."""
    best, least = basis, row_bytes(coded(calibration, basis, max_kl))
    edges = np.linspace(0, basis.num_components, groups + 1).astype(int)
    for first, last in pairwise(edges):
        for factor in (2**0.25, 2**-0.25):
            step = best.step.copy()
            step[first:last] *= np.float32(factor)
            size = row_bytes(coded(calibration, tried := replace(best, step=step), max_kl))
            if size < least:
                best, least = tried, size
    return best


def show_steps(name: str, logits: Rows) -> None:
    """Print bytes with a step for each component."""
    calibration, rows = split(logits)
    for max_kl in BUDGETS:
        basis = basis_of(calibration, max_kl)
        found = coded(calibration, basis, max_kl)
        whole = row_bytes(coded(rows, basis, max_kl))
        share = np.quantile(shares(basis, found, calibration), [0.1, 0.5, 0.9])
        print(
            f"  {name}, {max_kl:g}, one step: {whole:.1f} bytes; shares of a component in the KL, times the"
        )
        print(f"    components, 10th, 50th and 90th percentile: {share.round(2)}")
        for power in (0.5, 1.0):
            tried = basis
            for number in (1, 2, 3):
                tried = water_filled(calibration, tried, max_kl, power)
                size = row_bytes(coded(rows, tried, max_kl))
                print(
                    f"    water-filled, power {power:g}, round {number}: {against(size, whole)}", flush=True
                )
        size = row_bytes(coded(rows, searched(calibration, basis, max_kl), max_kl))
        print(f"    searched in 8 groups:               {against(size, whole)}", flush=True)


# The rest of the budget


@dataclass
class Found:
    """Rows that were rounded by `rounded_rows`."""

    refined: Refined
    factor: NDArray[np.float32]
    """Step of each row in that of its component."""
    trials: float
    """Trials a row."""


def rounded_rows(
    rows: Rows,
    projected: Rows,
    basis: Basis,
    max_kl: float,
    per_octave: int = 2,
    target: float = 1.0,
    enough: int = TRIALS,
    predicted: Rows | None = None,
) -> Found:
    """Round rows as `refine_rows` does, with steps of step · 2^(−refine/per_octave), from a prediction if there is one.

    target: share of the budget at which a trial aims. enough: trials of a row that is within its budget already.
    """
    exact, kept = Softened(rows, TEMPERATURES, np.float32), rows.argmax(axis=1)
    scale, most = per_octave // 2, 50 * per_octave
    count, components = projected.shape
    found = Refined(
        np.zeros((count, components), np.int32),
        np.full(count, ESCAPED, np.uint8),
        np.full((count, len(TEMPERATURES)), np.nan),
    )
    tried = np.full(count, GUESS * scale)
    fails, passes, left, trials = np.full(count, -1), np.full(count, most + 1), np.arange(count), 0
    lost = np.zeros(count, int)
    source = projected if predicted is None else projected - predicted
    for trial in range(TRIALS):
        trials += len(left)
        factor = np.exp2(-tried[left] / per_octave).astype(np.float32)[:, None] * basis.step
        codes = np.rint(source[left] / factor)
        values = codes * factor if predicted is None else codes * factor + predicted[left]
        kl, good = tried_kl(exact, left, kept, values, basis, max_kl)
        better = left[good]
        found.codes[better], found.refine[better], found.kl[better] = codes[good], tried[better], kl[good]
        passes[better] = tried[better]
        fails[left[~good]] = tried[left[~good]]
        part = np.clip(kl.max(axis=1) / (max_kl * MARGIN * target), 2.0**-60, 2.0**60)
        go = np.ceil(scale * np.log2(part)).astype(int)
        lost[left] += ~good & (kl.max(axis=1) <= max_kl * MARGIN)
        go = np.where(good, go, np.maximum(go, 1 << np.clip(lost[left] - 3, 0, 5)))
        following = np.clip(tried[left] + go, 0, most)
        between = (fails[left] + passes[left]) // 2
        following = np.where((following <= fails[left]) | (following >= passes[left]), between, following)
        is_done = (passes[left] <= most) & (trial + 1 >= enough)
        is_done |= (good & (go >= 0)) | (passes[left] - fails[left] <= 1)
        tried[left] = following
        left = left[~is_done]
        if not len(left):
            break
    factor = np.exp2(-passes / per_octave).astype(np.float32)
    return Found(found, factor, trials / count)


def tried_kl(
    exact: Softened,
    left: NDArray[np.int64],
    kept: NDArray[np.int64],
    values: Rows,
    basis: Basis,
    max_kl: float,
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Decode some rows; return their KL at each temperature, and whether they keep their budget and largest class."""
    decoded = tiled_product(np.asarray(values, np.float32), basis.basis)
    decoded += basis.centre
    kl = exact.divergence(left, decoded)
    return kl, (kl.max(axis=1) <= max_kl * MARGIN) & (decoded.argmax(axis=1) == kept[left])


def towards_zero(in_steps: Rows, offset: Rows) -> Rows:
    """Round to integers, those below 1 only from 0.5 + offset on, and larger ones from 0.5 + offset / 3."""
    size = np.abs(in_steps)
    threshold = np.where(size < 1, offset, offset / 3)
    return np.asarray(np.sign(in_steps) * np.floor(size + np.float32(0.5) - threshold), np.float32)


def dead_zone(rows: Rows, projected: Rows, basis: Basis, max_kl: float, found: Found) -> Found:
    """Round rows towards 0 as far as the rest of their budget is expected to allow; one trial, kept if it does.

    A row's KL grows with the square of its error in the basis, which is known before the trial.
    """
    ok = found.refined.refine != ESCAPED
    factor = np.where(ok, found.factor, 1.0)[:, None].astype(np.float32) * basis.step
    in_steps = projected / factor
    error = np.square(in_steps - found.refined.codes).sum(axis=1)
    kl = np.nan_to_num(found.refined.kl.max(axis=1), nan=np.inf)
    errors = [np.square(in_steps - towards_zero(in_steps, offset)).sum(axis=1) for offset in OFFSETS]
    allowed = error * (0.95 * max_kl * MARGIN / kl)
    chosen = OFFSETS[np.maximum((np.stack(errors, axis=1) <= allowed[:, None]).sum(axis=1) - 1, 0)]
    codes = towards_zero(in_steps, chosen[:, None])
    exact = Softened(rows, TEMPERATURES, np.float32)
    new_kl, good = tried_kl(exact, np.arange(len(rows)), rows.argmax(axis=1), codes * factor, basis, max_kl)
    good &= ok
    refined = replace(
        found.refined,
        codes=np.where(good[:, None], codes, found.refined.codes).astype(np.int32),
        kl=np.where(good[:, None], new_kl, found.refined.kl),
    )
    return replace(found, refined=refined, trials=found.trials + 1)


def show_rest(name: str, logits: Rows) -> None:
    """Print bytes if the rest of a row's budget is used."""
    calibration, rows = split(logits)
    for max_kl in (1e-1, *BUDGETS, 1e-4):
        basis = basis_of(calibration, max_kl)
        whole = row_bytes(coded(rows, basis, max_kl))
        print(f"  {name}, {max_kl:g}: {whole:.1f} bytes as it is")
        with one_thread:
            projected = basis.project(rows)
            ways: dict[str, Found] = {"refine/2, as it is": rounded_rows(rows, projected, basis, max_kl)}
            ways["refine/2, then a dead zone"] = dead_zone(
                rows, projected, basis, max_kl, ways["refine/2, as it is"]
            )
            for per_octave, enough in ((4, 2), (4, 3), (8, 2), (8, 3), (16, 3)):
                way = f"refine/{per_octave}, {enough} trials"
                ways[way] = rounded_rows(rows, projected, basis, max_kl, per_octave, 0.95, enough)
            ways["refine/8, 3 trials, then a dead zone"] = dead_zone(
                rows, projected, basis, max_kl, ways["refine/8, 3 trials"]
            )
        for way, found in ways.items():
            used = np.nanmean(found.refined.kl.max(axis=1)) / max_kl
            escaped = int((found.refined.refine == ESCAPED).sum())
            print(
                f"    {way:38s} {against(row_bytes(found.refined), whole)}  mean KL {used:.2f} budgets, "
                f"{found.trials:.1f} trials a row, {escaped} escaped",
                flush=True,
            )


# Codecs


def show_codecs(name: str, logits: Rows) -> None:
    """Print bytes of the codes in other settings of their codec, and of `error` with fewer digits."""
    from numcodecs import blosc

    calibration, rows = split(logits)
    max_kl = 1e-2
    found = coded(rows, basis_of(calibration, max_kl), max_kl)
    codes = zigzag(found.codes)
    bits = sum(entropy((codes >> place) & 1).sum() for place in range(16))
    print(f"  {name}, {max_kl:g}: entropy of each component {entropy(codes).sum() / 8:.1f} bytes a row,")
    print(f"    of each bit of it {bits / 8:.1f}")
    blosc.use_threads = False
    for way, level, shuffle, block in (
        ("as it is: zstd 5, bits, 256 KiB", 5, blosc.BITSHUFFLE, 1 << 18),
        ("zstd 7", 7, blosc.BITSHUFFLE, 1 << 18),
        ("zstd 8", 8, blosc.BITSHUFFLE, 1 << 18),
        ("zstd 9", 9, blosc.BITSHUFFLE, 1 << 18),
        ("blocks of 32 KiB", 5, blosc.BITSHUFFLE, 1 << 15),
        ("blocks of 2 MiB", 5, blosc.BITSHUFFLE, 1 << 21),
        ("bytes, blocks of 16 KiB", 5, blosc.SHUFFLE, 1 << 14),
    ):

        def made(
            part: NDArray[np.generic], level: int = level, shuffle: int = shuffle, block: int = block
        ) -> bytes:
            columns = np.ascontiguousarray(part.T)
            return bytes(blosc.compress(columns, b"zstd", level, shuffle, block, 2))

        start = perf_counter()
        size = chunked(made, codes)
        rate = len(codes) / (perf_counter() - start)
        print(f"    {way:34s} {size:8.1f} bytes  {rate:9,.0f} rows/s", flush=True)
    error = error_of_kl(list(found.kl[found.refine != ESCAPED].T), TEMPERATURES)
    for digits in (11, 5, 4, 3, 2):
        recorded = coarser_up(error, digits)
        size = chunked(lambda part: compress(codec.COLUMNS, part), recorded)
        more = float((recorded.astype(np.float64) / error).mean())
        print(f"    error of {digits:2d} bits {size:6.2f} bytes, recorded / true {more:.3f}", flush=True)


# Views and members


def predictor(known: Rows, wanted: Rows, way: str) -> Callable[[Rows], Rows]:
    """Return a function from known components to predicted ones: a coefficient each, or a linear map of all."""
    if way == "coefficients":
        factor = (known * wanted).sum(axis=0) / np.maximum(np.square(known).sum(axis=0), 1e-9)
        return lambda values: np.asarray(values * factor, np.float32)
    gram = known.T.astype(np.float64) @ known
    ridge = 1e-3 * np.trace(gram) / len(gram) * np.eye(len(gram))
    linear = np.linalg.solve(gram + ridge, known.T.astype(np.float64) @ wanted).astype(np.float32)
    return lambda values: tiled_product(values, linear)


def decoded_components(rows: Rows, basis: Basis, max_kl: float) -> tuple[Rows, float]:
    """Return the decoded components of rows, and their bytes."""
    found = coded(rows, basis, max_kl)
    values = found.codes * (step_factor(found.refine)[:, None] * basis.step)
    return values.astype(np.float32), row_bytes(found)


def show_views(kind: str) -> None:
    """Print bytes of views that are predicted from the decoded view 0, beside those of views that are coded alone."""
    order = philox_permutation(len((views := view_logits(kind))[0]), 0, stream=0, counter=0)
    drawn, others = np.sort(order[:CALIBRATION_ROWS]), np.sort(order[CALIBRATION_ROWS:][:ROWS])
    for max_kl in BUDGETS:
        basis = basis_of(centred(views[0][drawn]), max_kl)
        known, _ = decoded_components(centred(views[0][drawn]), basis, max_kl)
        first, first_bytes = decoded_components(centred(views[0][others]), basis, max_kl)
        alone = [row_bytes(coded(centred(view[others]), basis, max_kl)) for view in views[1:]]
        print(f"  {kind}, {max_kl:g}: view 0 {first_bytes:.1f} bytes, the others alone {np.mean(alone):.1f}")
        for way in ("coefficients", "linear map"):
            with one_thread:
                predict = predictor(known, basis.project(centred(views[1][drawn])), way)
                predicted = predict(first)
                sizes = []
                for view in views[1:]:
                    rows = centred(view[others])
                    found = rounded_rows(rows, basis.project(rows), basis, max_kl, predicted=predicted)
                    sizes.append(row_bytes(found.refined))
            print(f"    {way}: a view {against(float(np.mean(sizes)), float(np.mean(alone)))}")
            for number in (2, 4, 8):
                stored, whole = sum(sizes[: number - 1]), first_bytes + sum(alone[: number - 1])
                # A student reads one view of a row in an epoch; a predicted one with view 0.
                read = (number * first_bytes + stored) / number
                print(
                    f"      {number} views: stored {against(first_bytes + stored, whole)}, "
                    f"read in an epoch {against(read, whole / number)}",
                    flush=True,
                )


def show_members() -> None:
    """Print bytes of members in a common basis and in their own, and of members predicted from one or from the mean."""
    members = member_logits()
    order = philox_permutation(len(members[0]), 0, stream=0, counter=0)
    drawn, others = np.sort(order[:CALIBRATION_ROWS]), np.sort(order[CALIBRATION_ROWS:][:ROWS])
    samples, rows = ([centred(member[part]) for member in members] for part in (drawn, others))
    mean = np.mean([member - member.mean(axis=1, keepdims=True) for member in members], axis=0)
    mean_sample, mean_rows = centred(mean[drawn]), centred(mean[others])
    for max_kl in BUDGETS:
        bases = [basis_of(sample, max_kl) for sample in samples]
        own = [row_bytes(coded(part, basis, max_kl)) for part, basis in zip(rows, bases, strict=True)]
        print(f"  {len(members)} members, {max_kl:g}, own bases: {sum(own):.1f} bytes a row of all")
        common = basis_of(np.concatenate(samples), max_kl)
        found = [coded(part, common, max_kl) for part in rows]
        size, escaped = sum(map(row_bytes, found)), sum(int((one.refine == ESCAPED).sum()) for one in found)
        print(f"    a common basis: {against(size, sum(own))}, {escaped} escaped")
        axes = [basis.num_components for basis in bases]
        print(
            f"    axes: {' + '.join(map(str, axes))} in own bases, {common.num_components} in the common one"
        )
        sources = {"the first": (samples[0], rows[0], own[0], 1)}
        basis = basis_of(mean_sample, max_kl)
        sources["the mean"] = (mean_sample, mean_rows, row_bytes(coded(mean_rows, basis, max_kl)), 0)
        for source, (sample, part, source_bytes, begin) in sources.items():
            source_basis = bases[0] if begin else basis
            known, _ = decoded_components(sample, source_basis, max_kl)
            values, _ = decoded_components(part, source_basis, max_kl)
            for way in ("coefficients", "linear map"):
                sizes = []
                with one_thread:
                    for number in range(begin, len(members)):
                        own_basis = bases[number]
                        if way == "coefficients":  # components of the member's own basis
                            turn = tiled_product(source_basis.basis, own_basis.forward)
                            shift = (source_basis.centre - own_basis.centre) @ own_basis.forward
                            turned = [tiled_product(one, turn) + shift for one in (known, values)]
                        else:
                            turned = [known, values]
                        wanted = own_basis.project(samples[number])
                        predicted = predictor(turned[0], wanted, way)(turned[1])
                        sizes.append(
                            row_bytes(
                                rounded_rows(
                                    rows[number],
                                    own_basis.project(rows[number]),
                                    own_basis,
                                    max_kl,
                                    predicted=predicted,
                                ).refined
                            )
                        )
                print(
                    f"    predicted from {source}, {way}: {against(source_bytes + sum(sizes), sum(own))}; "
                    f"a member {against(float(np.mean(sizes)), float(np.mean(own[begin:])))}",
                    flush=True,
                )


def main() -> None:
    """Print every table that is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    shown = {"steps": show_steps, "rest": show_rest, "codecs": show_codecs}
    of_omniglot = ("views", "members")
    parser.add_argument("--only", action="append", choices=[*shown, *of_omniglot])
    parser.add_argument("--logits", action="append", default=[], metavar="NAME=FILE.npy")
    arguments = parser.parse_args()
    chosen: Sequence[str] = arguments.only or [*shown, *of_omniglot]
    if any(what in shown for what in chosen):
        for name, logits in data([] if arguments.logits else ["Omniglot"], arguments.logits):
            for what in chosen:
                if what in shown:
                    shown[what](name, logits)
    if "views" in chosen:
        show_views("shift")
        show_views("crop")
    if "members" in chosen:
        show_members()


if __name__ == "__main__":
    main()
