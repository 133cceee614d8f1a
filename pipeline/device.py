"""On which device does a network run?"""

import torch

from ..storage.errors import ConfigError


def choose_device(name: str | None = None) -> torch.device:
    """The device that is named, or the GPU where there is one. Raises ConfigError for one that is not there."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        raise ConfigError(
            "device",
            expected="a device that PyTorch can use here, such as cpu",
            found=f"{name!r} ({str(error).splitlines()[0][:120]})",
            remedy="name another one, or leave it out",
        ) from error
    return device
