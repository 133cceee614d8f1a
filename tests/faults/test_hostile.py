"""A hostile store does no harm: no code, no files outside, bounded memory and time, one kind of error."""

import functools
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from support import stores

from faults import hostile, hostile_clusterings, hostile_files, hostile_transform
from faults.forge import HARMLESS, REFUSED, SECRET, SHOWN, UNREADABLE, Forge, Kind
from faults.hostile_files import LOCATIONS
from faults.sandbox import Sandbox
from faults.tally import Tally
from logitstore.cli.printing.text import printable

KINDS = (*hostile.KINDS, *hostile_files.KINDS)
MOST_SECONDS = 2.0
MOST_GROWTH = 256 << 20
COMMANDS = ("inspect", "inspect json", "verify")
EXITS = {"inspect": {0, 65, 75}, "inspect json": {0, 65, 75}, "verify": {0, 1, 3, 4, 65, 75}}
"""Exit codes of errors that are told as such; 70 would be a bug."""

pytestmark = pytest.mark.xdist_group("hostile")


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good store, with a secret beside it."""
    folder = tmp_path_factory.mktemp("hostile")
    made = stores.make(
        folder / "store.zarr", rows=11, block_rows=4, teachers={"wide": stores.Teacher(augmented=True)}
    )
    stores.add_clustering(made.store)
    (folder / "outside").mkdir()
    (folder / "outside" / "secret").write_bytes(SECRET)
    return made.path


@pytest.fixture(scope="module")
def sandbox(clean: Path) -> Iterator[Sandbox]:
    """The processes that open stores."""
    with Sandbox(clean) as box:
        yield box


@pytest.fixture(scope="module")
def good(sandbox: Sandbox, clean: Path) -> dict[str, Any]:
    """What a child sees of the good store."""
    return sandbox.open(clean)


def forged(kind: Kind, clean: Path, folder: Path) -> Path:
    """A hostile store of that kind, with a secret beside it."""
    for key, data in good_files(clean.parent).items():
        target = folder / key
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    forge = Forge(folder / "store.zarr")
    kind.build(forge)
    forge.sign()
    return forge.path


@functools.cache
def good_files(folder: Path) -> dict[str, bytes]:
    """The files under a folder, read once."""
    return stores.tree(folder)


def listing(folder: str) -> dict[str, Any]:
    """Every name under a folder, and what it is; nothing is opened."""
    found: dict[str, Any] = {}
    with os.scandir(folder) as entries:
        for entry in entries:
            about = entry.stat(follow_symlinks=False)
            found[entry.path] = (about.st_mode, about.st_size, about.st_mtime_ns)
            if entry.is_dir(follow_symlinks=False):
                found |= listing(entry.path)
    return found


def harm(kind: Kind, found: dict[str, Any], good: dict[str, Any]) -> list[str]:
    """What a child did, or let happen, that it must not."""
    wrong = []
    outcomes = found["outcomes"]
    if found["status"] != 0:
        wrong.append(f"the process ended with {found['status']} after {found['seconds']:.1f} s")
    if found["seconds"] > MOST_SECONDS:
        wrong.append(f"{found['seconds']:.1f} s")
    if found["growth"] > MOST_GROWTH:
        wrong.append(f"{found['growth'] >> 20} MiB of memory")
    wrong += sorted(set(found["events"]) - set(good["events"]))
    for step, outcome in outcomes.items():
        if step in COMMANDS and "ok" in outcome:
            wrong += unfit_output(step, outcome["ok"])
        elif "error" in outcome and not outcome["typed"]:
            wrong.append(f"{step}: {outcome['error']}: {outcome['text']}")
        elif "ok" in outcome and step not in kind.differs and outcome != good["outcomes"].get(step):
            wrong.append(f"{step}: other numbers, and no error")
    return wrong + unfit_outcome(kind, outcomes, good["outcomes"])


def unfit_output(step: str, output: dict[str, Any]) -> list[str]:
    """What is wrong with what a command printed."""
    text = output["stdout"] + output["stderr"]
    for bold in ("\x1b[1m", "\x1b[0m"):  # of the heading of a table
        text = text.replace(bold, "")
    wrong = []
    if output["exit"] not in EXITS[step]:
        wrong.append(f"{step}: exit code {output['exit']}: {output['stderr'][-300:]}")
    if printable(text, keep="\n") != text:
        wrong.append(f"{step}: steers the terminal: {text[:300]!r}")
    if "Traceback" in text or SECRET.decode().strip() in text or "root:x:0" in text:
        wrong.append(f"{step}: {text[:300]!r}")
    if output["stderr"].count("\n") > 1:
        wrong.append(f"{step}: more than a line: {output['stderr'][:300]!r}")
    return wrong


def unfit_outcome(kind: Kind, outcomes: dict[str, Any], good: dict[str, Any]) -> list[str]:
    """What is wrong with the verdict."""
    verdict = outcomes.get("verify", {}).get("ok", {}).get("exit")
    refused = [step for step, outcome in outcomes.items() if "error" in outcome]
    if outcomes.get("inspect", {}).get("ok", {}).get("exit"):
        refused.append("inspect")
    if kind.outcome in (REFUSED, UNREADABLE):
        told = [] if verdict or kind.outcome == UNREADABLE else [f"verify: exit code {verdict}"]
        return told + ([] if refused else ["nothing was refused"])
    if refused or set(outcomes) != set(good):
        return [f"refused: {step}: {outcomes[step]['text']}" for step in refused] or [
            "not every step was taken"
        ]
    if kind.outcome == SHOWN and verdict != 0:
        return [f"verify: exit code {verdict}"]
    return []


def tried(
    kind: Kind, sandbox: Sandbox, clean: Path, folder: Path, good: dict[str, Any], **request: str
) -> list[str]:
    """Make a hostile store, open it, and say what harm it did."""
    path = forged(kind, clean, folder)
    before = listing(str(folder))
    wrong = harm(kind, sandbox.open(path, **request), good)
    if listing(str(folder)) != before:
        wrong.append("something was written")
    shutil.rmtree(folder)
    return [f"{kind.name}: {line}" for line in wrong]


def test_the_good_store_is_read_and_does_nothing(good: dict[str, Any]) -> None:
    """Negative control: what is refused below is refused for what was changed."""
    assert harm(Kind("", lambda _: None, SHOWN), good, good) == []
    assert {e.split(" ")[0] for e in good["events"]} <= {"pickle.find_class"}, (
        "dask takes its own graph apart"
    )
    assert not [event for event in good["events"] if "numpy" not in event and "dask" not in event]
    assert good["outcomes"]["verify"]["ok"]["exit"] == 0


@pytest.mark.parametrize("part", range(8), ids="part {}".format)
def test_a_hostile_store_does_no_harm(
    sandbox: Sandbox, clean: Path, good: dict[str, Any], tmp_path: Path, tally: Tally, part: int
) -> None:
    kinds = KINDS[part::8]
    wrong = []
    for number, kind in enumerate(kinds):
        wrong += tried(kind, sandbox, clean, tmp_path / str(number), good)
    outcomes = {
        name: sum(kind.outcome == name for kind in kinds) for name in (REFUSED, UNREADABLE, HARMLESS, SHOWN)
    }
    tally.reached("hostile", len(kinds), "kinds", wrong, **outcomes)


@pytest.fixture(scope="module")
def transformed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good store of a capture in the transform encoding, with a secret beside it."""
    folder = tmp_path_factory.mktemp("transformed")
    with mock.patch("os.fsync"):
        hostile_transform.make(folder / "store.zarr")
    (folder / "outside").mkdir()
    (folder / "outside" / "secret").write_bytes(SECRET)
    return folder / "store.zarr"


@pytest.fixture(scope="module")
def good_transform(sandbox: Sandbox, transformed: Path) -> dict[str, Any]:
    """What a child sees of that store."""
    return sandbox.open(transformed)


def test_the_good_transform_is_read(good_transform: dict[str, Any]) -> None:
    """Negative control of the next two."""
    assert harm(Kind("", lambda _: None, SHOWN), good_transform, good_transform) == []
    assert set(hostile_transform._ROWS) <= set(good_transform["outcomes"])


@pytest.mark.parametrize("part", range(2), ids="part {}".format)
def test_a_hostile_transform_does_no_harm(
    sandbox: Sandbox,
    transformed: Path,
    good_transform: dict[str, Any],
    tmp_path: Path,
    tally: Tally,
    part: int,
) -> None:
    kinds = hostile_transform.KINDS[part::2]
    wrong = []
    for number, kind in enumerate(kinds):
        wrong += tried(kind, sandbox, transformed, tmp_path / str(number), good_transform)
    tally.reached("transform", len(kinds), "kinds", wrong)


@pytest.mark.parametrize(
    ("guard", "name"),
    [
        ("numbers of a basis", "nan in step"),
        ("numbers of a basis", "-0.25 in step"),
        ("digest of a basis", "a basis without the digest that would fit"),
        ("rows", "refine 200"),
        ("rows", "an escaped row of one class of fill"),
    ],
)
def test_a_transform_that_is_not_checked_is_missed(
    sandbox: Sandbox,
    transformed: Path,
    good_transform: dict[str, Any],
    tmp_path: Path,
    tally: Tally,
    guard: str,
    name: str,
) -> None:
    (kind,) = [kind for kind in hostile_transform.KINDS if kind.name == name]
    wrong = tried(kind, sandbox, transformed, tmp_path / "unguarded", good_transform, without=guard)
    tally.control("transform", f"{guard}: {name}", any("other numbers" in line for line in wrong))


@pytest.mark.parametrize("part", range(2), ids="part {}".format)
def test_a_hostile_clustering_does_no_harm(
    sandbox: Sandbox, clean: Path, good: dict[str, Any], tmp_path: Path, tally: Tally, part: int
) -> None:
    kinds = hostile_clusterings.KINDS[part::2]
    wrong = []
    for number, kind in enumerate(kinds):
        wrong += tried(kind, sandbox, clean, tmp_path / str(number), good)
    tally.reached("clustering", len(kinds), "kinds", wrong)


@pytest.mark.parametrize(
    "name", ["assignment to cluster 10**9", "notes: inertia of 400 digits", "sets of class 5"]
)
def test_a_clustering_that_is_not_checked_is_missed(
    sandbox: Sandbox, clean: Path, good: dict[str, Any], tmp_path: Path, tally: Tally, name: str
) -> None:
    (kind,) = [kind for kind in hostile_clusterings.KINDS if kind.name == name]
    wrong = tried(kind, sandbox, clean, tmp_path / "unguarded", good, without="clusterings")
    tally.control("clustering", name, bool(wrong))


def test_a_hostile_location_is_refused(sandbox: Sandbox, good: dict[str, Any], tally: Tally) -> None:
    wrong = []
    for location in LOCATIONS:
        found = sandbox.open(location)
        exits = {step: found["outcomes"].pop(step)["ok"]["exit"] for step in COMMANDS}
        if not set(exits.values()) <= {64, 65}:  # the command line is wrong, or there is no store
            wrong.append(f"{location!r}: {exits}")
        unfit = harm(Kind(location, lambda _: None), found, good)
        wrong += [f"{location!r}: {line}" for line in unfit if not line.startswith("verify: exit code None")]
    tally.reached("hostile", len(LOCATIONS), "kinds", wrong)


# Negative controls: what the watch must see


@pytest.mark.parametrize(
    ("misdeed", "seen"),
    [
        ("pickle", "pickle.find_class"),
        ("outside", "open: /etc/hostname"),
        ("outside by descriptor", "os.open: "),
        ("socket", "socket.connect"),
        ("subprocess", "subprocess.Popen"),
        ("exec", "exec of <a store>"),
        ("writing", "os.mkdir"),
        ("memory", "MiB of memory"),
        ("sleep", "2.2 s"),
        ("bug", "open: KeyError"),
    ],
    ids=["pickle", "open", "descriptor", "socket", "subprocess", "exec", "mkdir", "memory", "sleep", "bug"],
)
def test_a_misdeed_is_seen(
    sandbox: Sandbox, clean: Path, good: dict[str, Any], tmp_path: Path, tally: Tally, misdeed: str, seen: str
) -> None:
    shutil.copytree(clean.parent, tmp_path / "copy")
    found = sandbox.open(tmp_path / "copy" / "store.zarr", misdeed=misdeed)
    wrong = harm(Kind("", lambda _: None, SHOWN), found, good)
    tally.control(
        "hostile", f"the watch: {misdeed}", any(line.startswith(seen) or seen in line for line in wrong)
    )


def kind_named(name: str) -> Kind:
    (kind,) = [kind for kind in KINDS if kind.name == name]
    return kind


@pytest.mark.parametrize(
    ("name", "misdeed", "seen"),
    [
        ("format 2, filters vlen-utf8 and pickle", "unpickle", "pickle.find_class ('posix', 'system')"),
        ("bomb: gzip", "gunzip", "MiB of memory"),
    ],
    ids=["pickle", "bomb"],
)
def test_the_stores_are_dangerous_to_who_trusts_them(
    sandbox: Sandbox,
    clean: Path,
    good: dict[str, Any],
    tmp_path: Path,
    tally: Tally,
    name: str,
    misdeed: str,
    seen: str,
) -> None:
    """Decoded as their metadata ask for (as numcodecs before 0.16.6 did), they do what they are for."""
    wrong = tried(kind_named(name), sandbox, clean, tmp_path / "store", good, misdeed=misdeed)
    tally.control("hostile", f"{name}, opened naively", any(seen in line for line in wrong))


@pytest.mark.parametrize(
    ("guard", "name", "seen"),
    [
        ("allow-list", "codec: big endian", "nothing was refused"),
        ("allow-list", "codec: numcodecs.pickle", "nothing was refused"),
        (
            "limits",
            "2**40 chunks of an array that the format does not know",
            ("MiB of memory", "the process ended"),
        ),
        ("links", f"a link in place of {'teachers/wide/logits/c.0.0.0'}", "os.open: "),
        ("names", "seal: lists '../../../outside/secret'", "os.open: "),
        ("canonical JSON", "JSON: duplicate keys", ("other numbers", "nothing was refused")),
        ("terminal", "class name: ANSI colours", "steers the terminal"),
    ],
    ids=["big endian", "pickle", "limits", "links", "names", "canonical JSON", "terminal"],
)
def test_without_a_guard_there_is_harm(
    sandbox: Sandbox,
    clean: Path,
    good: dict[str, Any],
    tmp_path: Path,
    tally: Tally,
    guard: str,
    name: str,
    seen: str | tuple[str, ...],
) -> None:
    kind = kind_named(name)
    assert tried(kind, sandbox, clean, tmp_path / "guarded", good) == []
    wrong = tried(kind, sandbox, clean, tmp_path / "unguarded", good, without=guard)
    words = (seen,) if isinstance(seen, str) else seen
    tally.control("hostile", f"{guard}: {name}", any(word in line for word in words for line in wrong))


def test_nothing_that_a_store_names_is_imported(
    sandbox: Sandbox, clean: Path, tmp_path: Path, tally: Tally
) -> None:
    """`this` is a module that says so when it is imported; a factory of a provenance is a string like any other."""
    path = forged(kind_named("a factory in the provenance"), clean, tmp_path / "store")
    found = sandbox.open(path)
    shown = json.loads(found["outcomes"]["inspect json"]["ok"]["stdout"])
    assert shown["captures"][0]["provenance"]["teacher"]["factory"] == "this:s"
    wrong = [outcome["ok"]["stdout"] for step, outcome in found["outcomes"].items() if step in COMMANDS]
    tally.reached("hostile", 1, "kinds", [text for text in wrong if "Beautiful is better" in text])


def test_inspect_names_what_is_damaged_and_shows_the_rest(
    sandbox: Sandbox, clean: Path, tmp_path: Path
) -> None:
    found = sandbox.open(forged(kind_named("spec: encoding of text"), clean, tmp_path / "store"))
    output = found["outcomes"]["inspect json"]["ok"]
    shown = json.loads(output["stdout"])
    assert output["exit"] == 65
    assert [part["part"] for part in shown["unreadable"]] == ["teachers/wide"]
    assert "encoding: expected a JSON object, found 'float16'" in shown["unreadable"][0]["reason"]
    assert shown["samples"] is not None and shown["class_names"][0] == "clàss 0"
    assert [clustering["name"] for clustering in shown["clusterings"]] == ["wide-2x2"]
    assert "teachers/wide: cannot be read: " in found["outcomes"]["inspect"]["ok"]["stdout"]
