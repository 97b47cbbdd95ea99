"""A small transformer encoder."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from fedkd.errors import refuse_if
from fedkd.models.zoo.classifier import (
    Classifier,
    check_dropout,
    check_sizes,
    mean_of_tokens,
    projecting,
    with_dropout,
)


class EncoderLayer(nn.Module):
    """Self-attention and two layers per token, each normalised before and added to its input."""

    recordable: ClassVar[bool] = True

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention_in, self.attention_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feedforward = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Map ``[B, L, width]`` to the same shape; no position sees keys that are `hidden` ``[B, L]``."""
        split = self.attention_in(self.norm1(x)).unflatten(2, (3, self.heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4).unbind(0)
        scores = query @ key.transpose(2, 3) / query.shape[3] ** 0.5
        weights = scores.masked_fill(hidden[:, None, None, :], float("-inf")).softmax(dim=3)
        x = x + self.attention_out((weights @ value).transpose(1, 2).flatten(2))
        return x + self.feedforward(self.norm2(x))


class Encoder(nn.Module):
    """Maps token ids ``[B, L]`` to the mean ``[B, width]`` of the encoded tokens, without padding (0)."""

    recordable: ClassVar[bool] = True

    def __init__(self, vocabulary: int, length: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Parameter(torch.randn(length, width) * 0.02)
        self.layers = nn.ModuleList(EncoderLayer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return the means; zeros for texts without tokens."""
        given = x != 0
        # Texts without tokens see their padding, because the softmax of nothing is NaN.
        hidden = ~given & given.any(dim=1, keepdim=True)
        encoded = self.embedding(x) + self.position[: x.shape[1]]
        for layer in self.layers:
            encoded = layer(encoded, hidden)
        return mean_of_tokens(self.norm(encoded), given)


def tiny_transformer(
    input_shape: tuple[int, ...],
    classes: int,
    *,
    vocabulary: int = 8000,
    width: int = 64,
    layers: int = 2,
    heads: int = 4,
    dropout: float = 0.0,
    projection: int = 0,
) -> Classifier:
    """Return a transformer encoder with learned positions, and the mean over tokens.

    Vaswani et al., "Attention Is All You Need", NeurIPS 2017, with normalisation before each part: Xiong et
    al., "On Layer Normalization in the Transformer Architecture", ICML 2020.

    Args:
        vocabulary: Number of token ids, padding included; by default that of the data.
        width: Width of an embedding, a multiple of `heads`.
        layers: Number of layers.
        heads: Heads of each layer's attention.
        dropout: Probability of dropping a feature in training.
        projection: Width of a two-layer projection below the head, for `moon`, whose paper has 256; 0: none.
    """
    check_dropout(dropout)
    check_sizes(vocabulary=vocabulary, width=width, layers=layers, heads=heads)
    refuse_if(width % heads, f"width must be a multiple of heads ({heads}), got {width}", "clients.args")
    body = with_dropout([Encoder(vocabulary, input_shape[0], width, layers, heads)], dropout)
    return projecting(body, width, classes, projection=projection)
