"""Convolutions over word sequences."""

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedkd.errors import refuse_if
from fedkd.models.zoo.classifier import Classifier, check_dropout, check_sizes, projecting, with_dropout


class Windows(nn.Module):
    """Maps token ids ``[B, L]`` to the largest responses ``[B, filters · sizes]`` of all windows of tokens.

    A window begins at a token, never at padding (0), and zeros stand for what follows the text.
    """

    recordable: ClassVar[bool] = True

    def __init__(self, vocabulary: int, width: int, sizes: Sequence[int], filters: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.sizes = tuple(sizes)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, filters, size) for size in sizes)

    def forward(self, x: Tensor) -> Tensor:
        """Return responses ≥ 0; zeros for texts without tokens."""
        given = (x != 0).unsqueeze(1)
        embedded = self.embedding(x).transpose(1, 2) * given
        found = []
        for size, convolution in zip(self.sizes, self.convolutions, strict=True):
            responses = F.relu(convolution(F.pad(embedded, (0, size - 1))))
            # After ReLU, 0 in the place of padding leaves the maximum as −∞ before it would.
            found.append((responses * given).amax(dim=2))
        return torch.cat(found, dim=1)


def textcnn(
    input_shape: tuple[int, ...],
    classes: int,
    *,
    vocabulary: int = 8000,
    width: int = 64,
    sizes: Sequence[int] = (3, 4, 5),
    filters: int = 32,
    dropout: float = 0.0,
    projection: int = 0,
) -> Classifier:
    """Return a convolutional network over word sequences, with maxima over time.

    Kim, "Convolutional Neural Networks for Sentence Classification", EMNLP 2014.

    Args:
        vocabulary: Number of token ids, padding included; by default that of the data.
        width: Width of an embedding.
        sizes: Widths of the windows, in tokens.
        filters: Filters of each width.
        dropout: Probability of dropping a feature in training.
        projection: Width of a two-layer projection below the head, for `moon`, whose paper has 256; 0: none.
    """
    check_dropout(dropout)
    listed = isinstance(sizes, Sequence) and sizes and all(type(size) is int and size > 0 for size in sizes)
    refuse_if(not listed, f"sizes must be a list of widths ≥ 1, got {sizes!r}", "clients.args")
    check_sizes(vocabulary=vocabulary, width=width, filters=filters)
    body = with_dropout([Windows(vocabulary, width, sizes, filters)], dropout)
    return projecting(body, len(sizes) * filters, classes, projection=projection)
