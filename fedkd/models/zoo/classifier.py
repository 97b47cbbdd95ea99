"""The form of all zoo models: a body for features, and a linear head."""

from typing import ClassVar

from torch import Tensor, nn

from fedkd.errors import UserError, refuse_if


class Classifier(nn.Module):
    """A classifier with access to the penultimate features ``[B, F]`` of its body."""

    recordable: ClassVar[bool] = True

    def __init__(self, body: nn.Module, width: int, classes: int, *, bias: bool = True) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(width, classes, bias=bias)

    def features(self, x: Tensor) -> Tensor:
        """Return the penultimate features ``[B, F]`` of samples ``[B, *input_shape]``."""
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``[B, C]`` of samples ``[B, *input_shape]``."""
        return self.head(self.features(x))


def projecting(
    body: nn.Sequential, width: int, classes: int, *, projection: int, bias: bool = True
) -> Classifier:
    """Return a classifier of a body with features ``[B, width]``, optionally with a two-layer projection.

    The projection is a layer of the features' width, ReLU, and a layer of `projection` outputs (0: none), as
    part of the body. So in Chen et al., "A Simple Framework for Contrastive Learning of Visual
    Representations", ICML 2020, and in MOON.
    """
    if type(projection) is not int or projection < 0:
        raise UserError(f"projection must be ≥ 0, got {projection!r}", key="clients.args")
    if projection:
        first, last = nn.Linear(width, width, bias=bias), nn.Linear(width, projection, bias=bias)
        body, width = nn.Sequential(*body, first, nn.ReLU(), last), projection
    return Classifier(body, width, classes, bias=bias)


def check_dropout(dropout: float) -> None:
    """Refuse a dropout probability outside ``[0, 1)`` by a `UserError`."""
    is_number = isinstance(dropout, (int, float)) and not isinstance(dropout, bool)
    if not is_number or not 0.0 <= dropout < 1.0:
        raise UserError(f"dropout must be ≥ 0 and < 1, got {dropout!r}", key="clients.args")


def check_sizes(**sizes: int) -> None:
    """Refuse arguments that are not whole numbers ≥ 1 by a `UserError`."""
    for name, value in sizes.items():
        refuse_if(type(value) is not int or value < 1, f"{name} must be ≥ 1, got {value!r}", "clients.args")


def with_dropout(layers: list[nn.Module], dropout: float) -> nn.Sequential:
    """Return layers in a sequence, with dropout at the end unless it is 0."""
    return nn.Sequential(*layers, *([nn.Dropout(dropout)] if dropout else []))


def mean_of_tokens(values: Tensor, given: Tensor) -> Tensor:
    """Return the mean ``[B, F]`` of ``[B, L, F]`` over the positions `given` ``[B, L]``; none: zeros."""
    weight = given.to(values.dtype).unsqueeze(2)
    return (values * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1.0)
