"""The README: its examples run as they stand, its commands and its links exist."""

import re
import runpy
from pathlib import Path

import numpy as np
import pytest
from support import hands
from support.tree import ROOT

import logitstore
from logitstore.cli.main import COMMANDS
from logitstore.pipeline.augment import shift
from logitstore.pipeline.views import replay

README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
CALLS, TRAINING, VIEWS, INFERENCE = EXAMPLES


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a store where `make demo` leaves it, small."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    inputs = random.integers(0, 256, (200, 8, 8), dtype=np.uint8)
    store = logitstore.create_store(
        tmp_path / "logitstore-demo" / "store.zarr",
        num_classes=10,
        labels=np.arange(200) % 10,
        inputs=inputs,
        store_inputs=True,
    )
    augmentation = {"factory": "shift", "seed": 0, "first_view": 1}
    again = replay(shift(pixels=1))
    for name in ("wide", "conv"):
        with store.capture(name, provenance={"augmentation": augmentation}, views=4) as capture:
            for view in range(4):
                for rows in capture.missing_blocks(view):
                    seen = logitstore.digest_rows(again(inputs[rows], view, np.asarray(rows)))
                    capture.write(rows, random.standard_normal((len(rows), 10), np.float32), view, seen)
    return tmp_path


def run(source: str, given: dict[str, object] | None = None) -> dict[str, object]:
    """Run an example as a script of its own; the names that it leaves. given: names that it starts with."""
    script = Path("example.py")
    script.write_text(source, encoding="utf-8")
    return runpy.run_path(str(script), given)


def test_the_calls_run_with_things_in_hand(here: Path) -> None:
    """The things are those of a reader; a second run of the script finds everything done."""
    dataset, written = hands.Pictures(), set()
    for _ in range(2):
        given = {"model": hands.Net(), "dataset": dataset, "net": hands.Net(4)}
        names = run(CALLS.replace("epochs=20", "epochs=2").replace("clusters=4, ", "clusters=2, "), given)
        assert names["student"] is given["net"]
        (weights,) = here.glob("student/**/*.safetensors")
        written.add(weights.stat().st_mtime_ns)
    assert len(written) == 1
    assert list(logitstore.open_store(here / "store.zarr").teachers) == ["r50"]


def test_the_training_loop_runs_and_trains(here: Path) -> None:
    assert (
        len([line for line in TRAINING.splitlines() if line and not line.startswith(("import", "from"))])
        <= 10
    )
    names = run(TRAINING)
    student = names["student"]
    assert any(
        parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in student.parameters()
    )  # type: ignore[attr-defined]


def test_the_views_are_replayed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(VIEWS)
    assert capsys.readouterr().out == "13 batches an epoch, of views {0, 1, 2, 3}\n"
    with pytest.raises(logitstore.LogitStoreError, match="expected the input that the teacher saw"):
        run(VIEWS.replace("seed=0", "seed=1"))


def test_the_loop_of_the_page_of_streams_runs(here: Path) -> None:
    """It reads the store of the demo, too."""
    page = (ROOT / "docs" / "streaming.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    names = run(example)
    assert names["state"] == names["stream"].state_dict()  # type: ignore[attr-defined]
    assert set(names["batch"].logits) == {"wide", "conv"}  # type: ignore[attr-defined]


def test_the_inference_loop_runs_and_its_store_is_whole(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(INFERENCE)
    run(INFERENCE)  # as after a kill: nothing is missing
    store = logitstore.open_store(here / "mine.zarr")
    assert store.teachers["linear"].shape == (1, 5000, 10)
    assert store.digest in capsys.readouterr().out


def test_an_example_that_fails_is_noticed(here: Path) -> None:
    """Negative control."""
    with pytest.raises(Exception, match="no-such"):
        run(TRAINING.replace("logitstore-demo", "no-such"))


def test_every_command_is_listed() -> None:
    listed = set(re.findall(r"^(?:\w[\w ]*| ) +logitstore (\w+)", README, re.MULTILINE))
    assert listed == set(COMMANDS)


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)\)", README))
def test_every_link_leads_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


FIGURES = (ROOT / "docs" / "figures.md").read_text(encoding="utf-8")


def without_command(page: str) -> list[str]:
    """Return the rows of tables whose last cell names no script and no make target that is there."""
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    rows = [
        row
        for row in re.findall(r"^\|.*\|$", page, re.MULTILINE)
        if not row.startswith(("| measure", "| ---"))
    ]
    missing = []
    for row in rows:
        command = row.rstrip("| ").rpartition("| ")[2].strip("`").split()
        is_script = len(command) > 1 and command[0] == "python" and (ROOT / command[1]).is_file()
        if not is_script and not (command[:1] == ["make"] and command[1] in targets):
            missing.append(row)
    return missing


def test_every_figure_has_its_command_beside_it() -> None:
    assert len(re.findall(r"^\|", FIGURES, re.MULTILINE)) > 30
    assert without_command(FIGURES) == []
    assert "@@" not in README + FIGURES


def test_a_figure_without_its_command_is_noticed() -> None:
    """Negative control."""
    row = "| rows/s | the same | 2 times | | `python benchmarks/no_such.py` |"
    assert without_command(row) == [row]
    assert without_command("| rows/s | the same | 2 times | | `make no-such` |") != []
