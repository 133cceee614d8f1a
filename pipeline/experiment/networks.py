"""The keys that name a network, of teachers and of students: a factory, or a network of a library, and its weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

from pydantic import model_validator

from .schema import Name, Text, problem, show
from .training import Factory

SOURCES: Final[Mapping[str, str]] = {
    "hugging_face": "logitstore.pipeline.models.hugging_face:classifier",
    "file": "logitstore.pipeline.models.exported:exported",
    "timm": "logitstore.pipeline.models.libraries:timm_model",
    "torchvision": "logitstore.pipeline.models.libraries:torchvision_model",
}
"""Keys of a teacher that replace `factory`, and the factory that each stands for."""
UNTRAINED: Final[Mapping[str, str]] = {
    "hugging_face": "logitstore.pipeline.models.untrained:untrained",
    "timm": SOURCES["timm"],
    "torchvision": SOURCES["torchvision"],
}
"""The same of a student, whose network is made anew with the classes of the store."""
WHOLE: Final = frozenset({"hugging_face", "file"})
"""Sources whose network is in a file, and no name of a library."""
READY: Final = "factory"
"""Value of a teacher's `weights` for a factory that returns the network with its trained weights."""


class Network(Factory):
    """A network that a function makes, or that a library makes by its name.

    A key of `sources` may replace `factory`; `factory` then holds what that key stands for.
    """

    sources: ClassVar[Mapping[str, str]] = SOURCES
    """Keys that replace `factory`, and the factory that each stands for."""

    name: Name
    hugging_face: Text | None = None
    timm: Text | None = None
    torchvision: Text | None = None
    weights: Text | None = None
    """File of weights."""
    weights_key: Text | None = None
    """Part of that file to read, where it holds several networks: a key, a prefix of names, or both joined by a dot."""
    allow_pickle: bool = False
    """Whether `weights` may be a `.pt`, `.pth`, `.pth.tar`, `.bin` or `.ckpt` file instead of safetensors."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_the_factory(cls, data: object) -> object:
        sources = [key for key in ("factory", *cls.sources) if isinstance(data, Mapping) and key in data]
        if len(sources) > 1:
            expected = f"one of factory, {', '.join(cls.sources)}"
            raise problem(expected, " and ".join(sources), "keep one of them")
        if not isinstance(data, Mapping) or sources in ([], ["factory"]):
            return data
        (source,) = sources
        args = data.get("args", {})
        if source not in WHOLE and isinstance(args, Mapping):
            if "model" in args:
                raise problem(f"{source} alone", f"args.model = {show(args['model'])}", "remove args.model")
            args = {**args, "model": data[source]}
        return {**data, "factory": cls.sources[source], "args": args}

    @property
    def source(self) -> str:
        """The key that names the network: `factory`, or one of `sources`."""
        return next((key for key in self.sources if getattr(self, key) is not None), "factory")

    @property
    def is_ready(self) -> bool:
        """Whether the factory returns the network with its trained weights."""
        return self.weights == READY

    def check_file_keys(self) -> None:
        """Refuse keys that say how a file of weights is read where there is none."""
        for key in ("allow_pickle", "weights_key"):
            if getattr(self, key) and (self.weights is None or self.is_ready):
                found = "no weights" if self.weights is None else f"weights = {show(self.weights)}"
                raise problem(f"a file of weights beside {key}", found, f"remove {key}", key)


class NewNetwork(Network):
    """The network of a student: made anew with the classes of the store, with or without weights to begin with."""

    sources = UNTRAINED

    hugging_face: Text | None = None
    """Folder of a Hugging Face model, whose weights the training begins with; or its `config.json` alone, for new ones."""
    weights: Text | None = None
    """Weights that the training begins with: a file, or for `hugging_face` also the folder of a model."""
    reset_classifier: bool = False
    """Whether the last layer is made new, for the classes of the store, in place of that of the weights."""

    elsewhere = (
        ("file", "name the factory of the network: an exported one cannot be trained"),
        ("members", "set train.seeds, a list of seeds"),
        ("seed", "set train.seeds, a list of seeds"),
    )

    @model_validator(mode="after")
    def _weights_are_a_file(self) -> "NewNetwork":
        if self.is_ready:
            remedy = "remove weights: the training begins with the network as the factory returns it"
            raise problem("a file of weights", show(self.weights), remedy, "weights")
        self.check_file_keys()
        if self.reset_classifier and self.weights is None and self.hugging_face is None:
            remedy = "remove reset_classifier: without weights the whole network is new"
            raise problem("weights beside reset_classifier", "no weights", remedy, "reset_classifier")
        return self

    def path_of(self, base: Path) -> Path | None:
        """Return the folder or the configuration that `hugging_face` names; None for another source."""
        return None if self.hugging_face is None else base / self.hugging_face

    @property
    def network_keys(self) -> dict[str, Any]:
        """The keys by which two students have the same network and begin with the same weights."""
        keys = ("factory", "args", "hugging_face", "weights", "weights_key", "reset_classifier")
        return {key: getattr(self, key) for key in keys}
