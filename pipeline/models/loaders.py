"""Stable names of our own loaders in identities, so that moving a module changes no identity."""

from collections.abc import Mapping
from typing import Any, Final

LOADERS: Final[Mapping[str, str]] = {
    f"logitstore.pipeline.{place}": name
    for name, places in {
        "hugging_face": ("models.hugging_face:classifier", "hugging_face:classifier"),
        "hugging_face_untrained": ("models.untrained:untrained",),
        "exported": ("models.exported:exported", "exported:exported"),
        "timm": ("models.libraries:timm_model", "named_models:timm_model"),
        "torchvision": ("models.libraries:torchvision_model", "named_models:torchvision_model"),
    }.items()
    for place in places
}
"""Stable name of each loader, by factory in experiments and in older stores. Append the new place when a loader moves."""


def stable_name(factory: str) -> str:
    """Return the name of a factory in an identity: a loader's stable name, or the factory itself.

    >>> stable_name("logitstore.pipeline.hugging_face:classifier"), stable_name("mine:net")
    ('hugging_face', 'mine:net')
    """
    return LOADERS.get(factory, factory)


def with_stable_names(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return an identity with every `factory` under its stable name, at any depth.

    >>> with_stable_names({"teacher": {"factory": "logitstore.pipeline.exported:exported"}})
    {'teacher': {'factory': 'exported'}}
    """

    def renamed(key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return with_stable_names(value)
        return stable_name(value) if key == "factory" and isinstance(value, str) else value

    return {key: renamed(key, value) for key, value in identity.items()}
