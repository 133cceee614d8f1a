"""The device that a network runs on."""

import torch

from ...storage.errors import ConfigError


def named_device(device: torch.device | str) -> torch.device:
    """Parse the name of a device, present or not. Raises ConfigError for an unknown name."""
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise _refused("a device such as cpu or cuda:0", device, error) from error


def choose_device(name: str | None = None) -> torch.device:
    """Return the named device, by default a GPU if there is one. Raises ConfigError for an absent one."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
    except (AssertionError, NotImplementedError, RuntimeError) as error:
        raise _refused("a device that PyTorch can use here, such as cpu", name, error) from error
    return device


def _refused(expected: str, name: object, error: Exception) -> ConfigError:
    found = f"{name!r} ({str(error).splitlines()[0][:120]})"
    return ConfigError(
        "device", expected=expected, found=found, remedy="name another device, or leave it out"
    )
