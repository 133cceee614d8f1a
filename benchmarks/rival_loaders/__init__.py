"""The other loaders with which the stream is compared, and their installation.

    batches        a batch, the data that all of them hold, the check of a loader's batches, the clock
    environments   a virtual environment for them, apart from the project's
    mosaicml, lit_data, web_dataset, hugging_face, memory_map    how each writes the data and reads them, its own way
    __main__       `python -m rival_loaders NAME write|check|time …`, in that environment; prints one line of JSON

A module of a loader has `write(source, folder)` and `WAYS`. `WAYS` maps names to functions from (folder,
number of workers) to the batches of one shuffled epoch. loaders.py runs them all, and prints the table.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Rival:
    """One of the loaders."""

    module: str
    """Its module in this package."""
    title: str
    """Its name in the table."""
    environment: str
    """Its virtual environment: a key of ENVIRONMENTS."""
    bars: dict[str, float]
    """By way: least speed of the stream, in multiples of the best of these ways; other ways have no bar."""
    distribution: str = ""
    """The distribution of its version; numpy if it is no product."""


ENVIRONMENTS = {
    "mosaicml": ("mosaicml-streaming==0.13.0",),  # apart, for it needs numpy < 2.2
    "others": ("litdata==0.2.76", "webdataset==1.0.2", "datasets==5.2.0"),
}
"""The packages of each environment, beside torch as constraints.txt pins it."""

RIVALS = (
    Rival("mosaicml", "MosaicML Streaming", "mosaicml", {"DataLoader": 15}, "mosaicml-streaming"),
    Rival("lit_data", "LitData", "others", {"as it comes": 5, "whole chunks": 5}, "litdata"),
    Rival("web_dataset", "WebDataset", "others", {"WebLoader": 50}, "webdataset"),
    Rival("hugging_face", "Hugging Face datasets", "others", {"map-style": 30, "iterable": 30}, "datasets"),
    Rival("memory_map", "memory map of numpy", "others", {"rows": 2}, "numpy"),
)
