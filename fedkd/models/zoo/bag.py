"""The mean of token embeddings."""

from typing import ClassVar

from torch import Tensor, nn

from fedkd.models.zoo.classifier import (
    Classifier,
    check_dropout,
    check_sizes,
    mean_of_tokens,
    projecting,
    with_dropout,
)


class MeanEmbedding(nn.Module):
    """Maps token ids ``[B, L]`` to the mean embedding ``[B, width]``, without padding (0)."""

    recordable: ClassVar[bool] = True

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the means; zeros for texts without tokens."""
        return mean_of_tokens(self.embedding(x), x != 0)


def bag(
    input_shape: tuple[int, ...],
    classes: int,
    *,
    vocabulary: int = 8000,
    width: int = 64,
    hidden: int = 64,
    dropout: float = 0.0,
    projection: int = 0,
) -> Classifier:
    """Return a bag of words: the mean of token embeddings and a hidden layer, blind to the order of words.

    Iyyer et al., "Deep Unordered Composition Rivals Syntactic Methods for Text Classification", ACL 2015.

    Args:
        vocabulary: Number of token ids, padding included; by default that of the data.
        width: Width of an embedding.
        hidden: Width of the hidden layer.
        dropout: Probability of dropping a feature in training.
        projection: Width of a two-layer projection below the head, for `moon`, whose paper has 256; 0: none.
    """
    check_dropout(dropout)
    check_sizes(vocabulary=vocabulary, width=width, hidden=hidden)
    body = [MeanEmbedding(vocabulary, width), nn.Linear(width, hidden), nn.ReLU()]
    return projecting(with_dropout(body, dropout), hidden, classes, projection=projection)
