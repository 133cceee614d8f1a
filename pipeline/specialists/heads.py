"""How does a generalist become a specialist: what gives the logit of the dustbin class, and with what does it begin?

`JointDustbin` keeps the whole network. The dustbin stands for all other classes, and its logit is their joint one,
log Σ exp. So the specialist begins exactly where the generalist is, and what tells its set from the rest is not to be
learned anew.

`replace_head` has it as the paper: a new head, with an output for each class of the set and one for the dustbin.

1. The head is the last `Linear` with as many outputs as there are classes, or the one that the experiment names.
2. The new head has an output for each class of the set, and one for the dustbin class. Outputs of classes are the
   generalist's own rows. The dustbin stands for all others at once, whose joint logit is log Σ exp; its row is the
   tangent of that function at features of zero: the same value there, and the same slope.
3. All else is the generalist's, and is trained on with it.

Either way the logits are those of the shares of a training batch; `Corrected` brings the natural prior back.

Source: Hinton et al. 2015, section 5.2.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ...storage.errors import BadDataError, ConfigError


class JointDustbin(nn.Module):
    """A network of all classes as a specialist: the logits of its set, and the joint one of the others."""

    own: Tensor
    others: Tensor

    def __init__(self, network: nn.Module, classes: Sequence[int], num_classes: int, offset: float) -> None:
        """Keep a network of so many classes.

        classes: of the set, ascending, neither none nor all. offset: added to the dustbin's logit, nats: the logarithm of
        how much more frequent others are in a training batch than in what the network knows.
        """
        super().__init__()
        self.network, self.offset = network, offset
        others = torch.ones(num_classes, dtype=torch.bool)
        others[list(classes)] = False
        self.register_buffer("own", torch.tensor(list(classes)), persistent=False)
        self.register_buffer("others", others.nonzero()[:, 0], persistent=False)

    def forward(self, inputs: Shaped[Tensor, "batch ..."]) -> Float[Tensor, "batch columns"]:
        """Logits of the set, in order, and of the dustbin, float32, nats."""
        logits: Tensor = self.network(inputs).float()
        joint = torch.logsumexp(logits[:, self.others], dim=1, keepdim=True) + self.offset
        return torch.cat([logits[:, self.own], joint], dim=1)


def find_head(module: nn.Module, num_classes: int, *, where: str, name: str | None = None) -> str:
    """The name of the layer that gives a module's logits.

    where: who it is, for messages. name: the layer, where the caller knows it.
    Raises ConfigError for a name that is no such layer, BadDataError where none can be found.
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
    """A head for some of the classes and the dustbin, which comes last; made of the rows of `head`.

    classes: ascending, neither none nor all of them.
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
    """Weights and bias of one output for many: the tangent of log Σ exp(w·h + b) at h = 0."""
    logits = weight.new_zeros(len(weight)) if bias is None else bias
    return torch.softmax(logits, dim=0) @ weight, torch.logsumexp(logits, dim=0)


def replace_head(
    module: nn.Module, classes: Sequence[int], num_classes: int, *, where: str, name: str | None = None
) -> str:
    """Give a module, in place, a head for some of its classes and the dustbin; the name of the layer.

    Raises as `find_head`. Whether the layer did give the logits shows when the module is run: `check_model`.
    """
    found = find_head(module, num_classes, where=where, name=name)
    parent, _, child = found.rpartition(".")
    layer = module.get_submodule(found)
    assert isinstance(layer, nn.Linear)  # find_head looks for nothing else
    if not found:
        raise BadDataError(
            where,
            expected="a network with a head",
            found="a single Linear layer, which is all head",
            remedy="wrap it in a module",
        )
    setattr(module.get_submodule(parent), child, specialist_layer(layer, classes))
    return found


class Corrected(nn.Module):
    """A specialist whose logits are those of the natural prior."""

    shift: Tensor

    def __init__(self, network: nn.Module, shift: Float[Tensor, " columns"]) -> None:
        """shift: what is added to each column, as `dustbin.shifts` gives it. Raises ConfigError for a second one."""
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
        """The corrected logits, float32, nats."""
        logits: Tensor = self.network(inputs)
        return logits.float() + self.shift
