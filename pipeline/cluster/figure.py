"""Picture of a clustering: its correlations, with the classes in the order of their clusters.

Classes that go together are a square on the diagonal. Two clusters with something in common are bright where they cross.
Only `draw_clustering` imports matplotlib.
"""

import importlib.util
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, Int64

from ...storage.api import Store
from ...storage.errors import ConfigError
from ...storage.parts.clusterings import ClusteringReader
from .memory import MATRICES, gib
from .sets import correlation_of

FORMATS = (".pdf", ".png", ".svg")
"""File name endings of the formats."""
_MOST_NAMES = 60
"""Maximum number of classes whose names are written beside the matrix."""


def check_figure(path: Path) -> None:
    """Refuse a file that cannot be written, before anything is computed for it. Raises ConfigError."""
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(
            f"--figure {path}",
            expected=f"a file name that ends in {', '.join(FORMATS)}",
            found=path.name,
            remedy=f"name it {path.stem}{FORMATS[0]}",
        )
    if not path.parent.is_dir() or path.is_dir():
        raise ConfigError(
            f"--figure {path}",
            expected="a new file in an existing folder",
            found="a folder" if path.is_dir() else f"a missing folder {path.parent}",
            remedy="choose another name, or make the folder",
        )
    if importlib.util.find_spec("matplotlib") is None:
        raise ConfigError(
            f"--figure {path}",
            expected="the package matplotlib, which draws it",
            found="no such package",
            remedy="pip install 'logitstore[plots]', or leave the figure out",
        )


def check_matrix(path: Path, num_classes: int, dimensions: int | None) -> None:
    """Refuse a figure of a clustering without a matrix, before it is computed. Raises ConfigError.

    dimensions: of the projection of its columns; None with a matrix.
    """
    if dimensions is not None:
        raise ConfigError(
            f"--figure {path}",
            expected=f"memory = {gib(MATRICES * 8 * num_classes**2)}, for the whole matrix",
            found=f"memory for a projection of its columns into {dimensions:,} dimensions",
            remedy="raise memory, or leave the figure out",
        )


def draw_clustering(store: Store, name: str, path: Path) -> None:
    """Draw clustering `name` of a store into a file of one of `FORMATS`.

    Raises ConfigError where the file cannot be written or the columns of the clustering were projected, PartNotFound
    without such a clustering.
    """
    check_figure(path)
    clustering = ClusteringReader(store.root, name)
    if "covariance" not in clustering.part.layouts:
        raise ConfigError(
            f"--figure {path}",
            expected="a clustering of the whole matrix",
            found=f"clusters/{name}, a clustering of projected columns",
            remedy="make a clustering with more memory",
        )
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    order, edges, correlation = ordered(clustering.covariance, clustering.assignment)
    figure = Figure(figsize=(8, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    # Most correlations are near 0; one of half the range already says that two classes are confused.
    image = axes.imshow(correlation, cmap="RdBu_r", vmin=-0.5, vmax=0.5, interpolation="nearest")
    for edge in edges[1:-1]:
        axes.axhline(edge - 0.5, color="black", linewidth=0.4)
        axes.axvline(edge - 0.5, color="black", linewidth=0.4)
    figure.colorbar(image, ax=axes, label="correlation of the softened predictions", extend="both")
    middles = (edges[:-1] + edges[1:] - 1) / 2
    axes.set_xticks(middles, [str(number) for number in range(len(middles))])
    axes.set_xlabel("cluster")
    if len(order) <= _MOST_NAMES:
        names = store.class_names
        axes.set_yticks(np.arange(len(order)), [_plain(names[number]) for number in order], fontsize=6)
    else:
        axes.set_yticks(middles, [str(number) for number in range(len(middles))])
        axes.set_ylabel("cluster")
    axes.set_title(f"clusters/{name}: {len(order):,} classes")
    # Without a date, so that the same clustering gives the same file.
    nothing = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    try:
        figure.savefig(path, dpi=160, metadata=nothing[path.suffix.lower()])
    except OSError as error:
        raise ConfigError(
            f"--figure {path}",
            expected="a file that can be written",
            found=(error.strerror or type(error).__name__).lower(),
            remedy="choose another name",
        ) from None


def ordered(
    covariance: Float32[np.ndarray, "classes classes"], assignment: Int64[np.ndarray, "classes"]
) -> tuple[Int64[np.ndarray, "classes"], Int64[np.ndarray, "edges"], Float64[np.ndarray, "classes classes"]]:
    """Sort the classes by cluster; return them, where each cluster begins (and the last ends), and their correlations.

    >>> order, edges, _ = ordered(np.eye(4, dtype=np.float32), np.array([0, 1, 0, 2]))
    >>> order.tolist(), edges.tolist()
    ([0, 2, 1, 3], [0, 2, 3, 4])
    """
    order = np.argsort(assignment, kind="stable")
    edges = np.concatenate(([0], np.cumsum(np.bincount(assignment))))
    return order, edges, correlation_of(covariance.astype(np.float64)[np.ix_(order, order)])


def _plain(name: str) -> str:
    """Return a class name that matplotlib draws as it is: a pair of dollars would be a formula."""
    return (name if len(name) <= 24 else name[:23] + "…").replace("$", r"\$")
