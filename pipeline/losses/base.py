"""The constructor and the `repr` that all losses share."""

from math import isfinite

from torch import nn

from ...storage.checks import check_temperature
from ...storage.errors import ConfigError


class WeightedLoss(nn.Module):
    """A loss with a temperature, or none, and weights of its terms."""

    temperature: float
    hard_weight: float

    def __init__(self, **numbers: float) -> None:
        """Keep each number as an attribute of its name.

        Raises ConfigError unless the temperature is finite and above 0, and every weight finite and 0 or more.
        """
        super().__init__()
        for name, number in numbers.items():
            if name == "temperature":
                check_temperature(number)
            elif not (isfinite(number) and number >= 0):
                expected = "a finite number of 0 or more"
                raise ConfigError(name, expected=expected, found=str(number), remedy=f"correct {name}")
            setattr(self, name, number)
        self._names = tuple(numbers)

    def extra_repr(self) -> str:
        """Show the numbers in `repr`."""
        return ", ".join(f"{name}={getattr(self, name)}" for name in self._names)
