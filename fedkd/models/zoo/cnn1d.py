"""A convolutional network over series."""

from collections.abc import Sequence

from torch import Tensor, nn

from fedkd.errors import refuse_if
from fedkd.models.zoo.classifier import Classifier, check_dropout, projecting, with_dropout


class TimeMean(nn.Module):
    """Maps ``[B, F, T]`` to the means over time ``[B, F]``."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the means."""
        return x.mean(dim=2)


def cnn1d(
    input_shape: tuple[int, ...],
    classes: int,
    *,
    filters: Sequence[int] = (64, 128, 64),
    sizes: Sequence[int] = (7, 5, 3),
    dropout: float = 0.0,
    projection: int = 0,
) -> Classifier:
    """Return a fully convolutional network over time, without the paper's batch normalisation.

    Wang, Yan & Oates, "Time Series Classification from Scratch with Deep Neural Networks", IJCNN 2017, with
    windows of 7 instead of 8 steps in the first layer, so that they have a centre.

    Args:
        filters: Filters of each layer.
        sizes: Width of the windows of each layer, in steps; odd.
        dropout: Probability of dropping a feature in training.
        projection: Width of a two-layer projection below the head, for `moon`, whose paper has 256; 0: none.
    """
    check_dropout(dropout)
    for name, values in (("filters", filters), ("sizes", sizes)):
        listed = (
            isinstance(values, Sequence) and values and all(type(one) is int and one > 0 for one in values)
        )
        refuse_if(not listed, f"{name} must be a list of integers ≥ 1, got {values!r}", "clients.args")
    odd = len(sizes) == len(filters) and all(size % 2 for size in sizes)
    told = f"sizes must be {len(filters)} odd widths, one for each layer, got {sizes!r}"
    refuse_if(not odd, told, "clients.args")
    layers, width = list[nn.Module](), input_shape[0]
    for count, size in zip(filters, sizes, strict=True):
        layers += [nn.Conv1d(width, count, size, padding=size // 2), nn.ReLU()]
        width = count
    return projecting(with_dropout([*layers, TimeMean()], dropout), width, classes, projection=projection)
