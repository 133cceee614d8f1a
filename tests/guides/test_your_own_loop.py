"""The plain loops of docs/guides/your-own-loop.md: they run as they stand, and resume without a difference.

Those of Lightning and transformers are run by tests/integrations.
"""

from pathlib import Path

from support.loops import (  # noqa: F401 - fixtures
    BATCHES,
    SCRIPTS,
    check_killed,
    expected,
    folder_of_loops,
    original_of_loops,
    run,
    seen,
)


def test_a_loop_that_was_killed_goes_on_as_if_it_had_not(folder: Path) -> None:
    check_killed(folder, "plain.py")


def test_a_loop_that_stops_between_two_epochs_loses_none(folder: Path) -> None:
    """Saved after the last batch of the first epoch: the second is not taken for the rest of the first."""
    source = SCRIPTS["plain.py"].replace("SAVE_EVERY, CHECKPOINT = 3, 4,", "SAVE_EVERY, CHECKPOINT = 3, 10,")
    assert source != SCRIPTS["plain.py"]
    (folder / "plain.py").write_text(source, encoding="utf-8")
    run(folder, "driver.py", "plain.py", str(BATCHES + 1), expect=9)
    run(folder, "driver.py", "plain.py", "0")
    assert seen(folder) == expected(folder)[BATCHES:]


def test_workers_send_their_batches_to_the_device(folder: Path) -> None:
    assert run(folder, "workers.py") == "(24, 10)\n"


def test_every_script_of_the_page_is_run_here() -> None:
    assert list(SCRIPTS) == [
        "make_store.py",
        "plain.py",
        "workers.py",
        "with_lightning.py",
        "with_transformers.py",
    ]
