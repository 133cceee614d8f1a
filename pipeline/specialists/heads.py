"""The heads that turn a generalist into a specialist, and the dustbin logit that each begins with.

`JointDustbin` keeps the whole network. The dustbin stands for all other classes, and its logit is theirs together,
log Σ exp. So the specialist begins exactly where the generalist is.

`replace_head` follows the paper: a new head, with an output for each class of the set and one for the dustbin.

1. The head is the last `Linear` with as many outputs as there are classes, or the layer that the experiment names.
2. The outputs of classes keep the generalist's rows. The row of the dustbin is the tangent of log Σ exp of all other
   outputs at features of zero: the same value there, and the same slope.
3. All other layers are the generalist's, and are trained further.

In both, the logits hold for the shares of a training batch; `Corrected` restores the natural prior.

Source: Hinton et al. 2015, section 5.2.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ...storage.errors import BadDataError, ConfigError


class JointDustbin(nn.Module):
    """A network of all classes as a specialist: the logits of its set, and the joint logit of all others."""

    own: Tensor
    others: Tensor

    def __init__(self, network: nn.Module, classes: Sequence[int], num_classes: int, offset: float) -> None:
        """Keep a network of `num_classes` classes.

        classes: the set, ascending, neither none nor all. offset: added to the dustbin's logit, nats: the logarithm of the
        odds of others in a training batch over those in the network's own training.
        """
        super().__init__()
        self.network, self.offset = network, offset
        others = torch.ones(num_classes, dtype=torch.bool)
        others[list(classes)] = False
        self.register_buffer("own", torch.tensor(list(classes)), persistent=False)
        self.register_buffer("others", others.nonzero()[:, 0], persistent=False)

    def forward(self, inputs: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch columns"]:
        """Return the logits of the set, in order, and of the dustbin, float32, nats."""
        logits: Tensor = self.network(inputs).float()
        joint = torch.logsumexp(logits[:, self.others], dim=1, keepdim=True) + self.offset
        return torch.cat([logits[:, self.own], joint], dim=1)


def find_head(module: nn.Module, num_classes: int, *, where: str, name: str | None = None) -> str:
    """Find the name of the layer that gives a module's logits.

    where: the module in messages. name: the layer, if the caller knows it.
    Raises ConfigError for a name that is no such layer, BadDataError if there is none.
    """
    layers = dict(module.named_modules())
    fitting = [
        key
        for key, layer in layers.items()
        if isinstance(layer, nn.Linear) and layer.out_features == num_classes
    ]
    if name is None and not fitting:
        raise BadDataError(
            where,
            expected=f"a Linear layer with {num_classes} outputs, to be replaced by a specialist's",
            found="none",
            remedy="let the generalist end in one, or use variant = 'full', which keeps the head",
        )
    if name is not None and name not in fitting:
        found = "nothing of that name"
        if name in layers:
            layer = layers[name]
            found = f"a {type(layer).__name__}"
            found += f" with {layer.out_features}" if isinstance(layer, nn.Linear) else ""
        raise ConfigError(
            f"{where}: head = '{name}'",
            expected=f"a Linear layer with {num_classes} outputs",
            found=found,
            remedy=f"name one of {', '.join(fitting)}"[:120]
            if fitting
            else "use variant = 'full', which keeps the head",
        )
    return fitting[-1] if name is None else name


def specialist_layer(head: nn.Linear, classes: Sequence[int]) -> nn.Linear:
    """Make a head for some classes and the dustbin, which is last, from the rows of `head`.

    classes: ascending, neither none nor all.
    """
    others = [number for number in range(head.out_features) if number not in set(classes)]
    weight, bias = head.weight.detach(), None if head.bias is None else head.bias.detach()
    new = nn.Linear(head.in_features, len(classes) + 1, bias=True, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        new.weight[:-1] = weight[list(classes)]
        new.bias[:-1] = 0.0 if bias is None else bias[list(classes)]
        new.weight[-1], new.bias[-1] = dustbin_row(weight[others], None if bias is None else bias[others])
    return new


def dustbin_row(
    weight: Float[Tensor, "others features"], bias: Float[Tensor, " others"] | None
) -> tuple[Float[Tensor, " features"], Float[Tensor, ""]]:
    """Merge many outputs into one, weights and bias: the tangent of log Σ exp(w·h + b) at h = 0."""
    logits = weight.new_zeros(len(weight)) if bias is None else bias
    return torch.softmax(logits, dim=0) @ weight, torch.logsumexp(logits, dim=0)


def replace_head(
    module: nn.Module, classes: Sequence[int], num_classes: int, *, where: str, name: str | None = None
) -> str:
    """Replace the head of a module, in place, by one for some classes and the dustbin; the name of the layer.

    Raises as `find_head`. `check_model` shows afterwards whether the layer did give the logits.
    """
    head = find_head(module, num_classes, where=where, name=name)
    parent, _, child = head.rpartition(".")
    layer = module.get_submodule(head)
    assert isinstance(layer, nn.Linear)  # find_head accepts no other layer
    if not head:
        raise BadDataError(
            where,
            expected="a network with a head",
            found="a single Linear layer, which is all head",
            remedy="wrap it in a module",
        )
    setattr(module.get_submodule(parent), child, specialist_layer(layer, classes))
    return head


class Corrected(nn.Module):
    """A specialist with the logits of the natural prior."""

    shift: Tensor

    def __init__(self, network: nn.Module, shift: Float[Tensor, " columns"]) -> None:
        """Add `shift`, of `dustbin.shifts`, to each column. Raises ConfigError for a network that is corrected already."""
        super().__init__()
        if isinstance(network, Corrected):
            raise ConfigError(
                "specialist",
                expected="a network as it was trained",
                found="one whose logits are corrected already",
                remedy="take it as it is",
            )
        self.network = network
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, inputs: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch columns"]:
        """Return the corrected logits, float32, nats."""
        logits: Tensor = self.network(inputs)
        return logits.float() + self.shift
