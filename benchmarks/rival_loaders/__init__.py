"""Which other loaders is the stream compared with, and how is each installed?

    batches        a batch, the data that all of them hold, the check of what a loader delivers, the clock
    environments   a virtual environment for them, apart from the project's
    mosaicml, lit_data, web_dataset, hugging_face, memory_map    how each writes the data and reads them, its own way
    __main__       `python -m rival_loaders NAME write|check|time …`, in that environment; prints one line of JSON

A module of a loader has `write(source, folder)` and `WAYS`, by name: functions from (folder, number of workers) to the
batches of one shuffled epoch. loaders.py runs them all, and prints the table.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rival:
    """One of the loaders."""

    module: str
    """The module that knows it, in this package."""
    title: str
    """Its name in the table."""
    environment: str
    """The virtual environment that it runs in: ENVIRONMENTS."""
    bars: dict[str, float]
    """By way: how many times as fast the stream must be as the best of the ways that are here; the others are reported."""
    distribution: str = ""
    """What its version is the version of; of numpy where it is nobody's product."""


ENVIRONMENTS = {
    "mosaicml": ("mosaicml-streaming==0.13.0",),  # apart, for it needs numpy < 2.2
    "others": ("litdata==0.2.76", "webdataset==1.0.2", "datasets==5.2.0"),
}
"""What is installed in each, beside torch as constraints.txt has it."""

RIVALS = (
    Rival("mosaicml", "MosaicML Streaming", "mosaicml", {"DataLoader": 15}, "mosaicml-streaming"),
    Rival("lit_data", "LitData", "others", {"as it comes": 5, "whole chunks": 5}, "litdata"),
    Rival("web_dataset", "WebDataset", "others", {"WebLoader": 50}, "webdataset"),
    Rival("hugging_face", "Hugging Face datasets", "others", {"map-style": 30, "iterable": 30}, "datasets"),
    Rival("memory_map", "memory map of numpy", "others", {"rows": 2}, "numpy"),
)
