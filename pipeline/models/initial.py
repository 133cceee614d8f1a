"""Files that the network of a student is made from, and those that hold the weights with which its training begins.

    factory, timm, torchvision    weights = "file"                  weights, or none
    hugging_face = "folder"       config.json, image processor      weights of that folder, or of `weights`
    hugging_face = "config.json"  the same, beside that file        weights = "folder" or "file", or none

The digests of all of them belong to the student's identity. No torch is imported, and nothing is downloaded.
"""

from pathlib import Path
from typing import Any

from ...storage.errors import BadDataError
from ..experiment.networks import NewNetwork
from .records import weights_digest
from .sources import ADAPTER, CONFIG, INDEX, PICKLES, PREPROCESSOR, WEIGHTS, model_files, source_digests


def configuration(path: Path) -> tuple[Path, Path]:
    """Return the places of the configuration of a Hugging Face model, and of its image processor, which may be absent.

    path: a folder, or the configuration itself. Raises BadDataError for a folder without one, and for another file.
    """
    config = path / CONFIG if path.is_dir() else path
    if not config.is_file() or config.suffix != ".json":
        raise BadDataError(
            str(path),
            expected=f"the folder of a Hugging Face model, or its {CONFIG}",
            found=f"no {CONFIG}" if path.is_dir() else "another file" if path.exists() else "nothing",
            remedy="name what save_pretrained wrote (nothing is downloaded)",
        )
    return config, config.parent / PREPROCESSOR


def configuration_digests(table: NewNetwork, base: Path) -> dict[str, str]:
    """Return the digests of the configuration and of the image processor that a network is made from, if any are named."""
    if (path := table.path_of(base)) is None:
        return {}
    named = zip((CONFIG, PREPROCESSOR), configuration(path), strict=True)
    return {name: weights_digest(file) for name, file in named if file.is_file()}


def initial_weights(table: NewNetwork, base: Path) -> Path | None:
    """Return the file or folder of the weights that a training begins with; None for new weights.

    base: folder of the experiment file. Raises BadDataError for a folder whose weights are a pickle or an adapter.
    """
    if table.weights is not None:
        path = base / table.weights
        # transformers renames tensors of such a file as it reads its folder.
        in_folder = path.name == WEIGHTS and (path.parent / CONFIG).is_file()
        return path.parent if in_folder and table.hugging_face is not None else path
    folder = table.path_of(base)
    if folder is None or not folder.is_dir():
        return None
    if any((folder / name).exists() for name in (WEIGHTS, INDEX, ADAPTER, *PICKLES)):
        model_files(folder)  # refuses those that are no safetensors
        return folder
    return None


def initial_identity(table: NewNetwork, base: Path) -> dict[str, Any]:
    """Return the digests of the files that a student follows from; nothing for new weights of a factory.

    base: folder of the experiment file. Raises BadDataError for a file that is not there.
    """
    found: dict[str, Any] = {}
    if files := configuration_digests(table, base):
        found["files"] = files
    if (weights := initial_weights(table, base)) is not None:
        found["initial"] = {
            "weights": source_digests(weights)[0],
            **({} if table.weights_key is None else {"weights_key": table.weights_key}),
            **({"reset_classifier": True} if table.reset_classifier else {}),
        }
    return found
