"""A recurrent network over words or series."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from fedkd.models.zoo.classifier import Classifier, check_dropout, check_sizes, projecting, with_dropout


class LastState(nn.Module):
    """Maps token ids ``[B, L]`` to the state ``[B, width]`` of a GRU at the last token.

    Padding (0) after it changes nothing. `vmap` has no rule for torch's GRU: the loop trains it.
    """

    recordable: ClassVar[bool] = True

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.gru = nn.GRU(width, width, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the states; that of one padding token for texts without tokens."""
        states, _ = self.gru(self.embedding(x))
        last = ((x != 0) * torch.arange(x.shape[1], device=x.device)).amax(dim=1)
        return states.gather(1, last[:, None, None].expand(-1, 1, states.shape[2])).squeeze(1)


class LastStep(nn.Module):
    """Maps series ``[B, C, T]`` to the state ``[B, width]`` of a GRU at the last step."""

    recordable: ClassVar[bool] = True

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.gru = nn.GRU(channels, width, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the states."""
        states, _ = self.gru(x.transpose(1, 2))
        return states[:, -1]


def gru(
    input_shape: tuple[int, ...],
    classes: int,
    *,
    vocabulary: int = 8000,
    width: int = 64,
    dropout: float = 0.0,
    projection: int = 0,
) -> Classifier:
    """Return a gated recurrent network, read at the last token of a text or the last step of a series.

    Cho et al., "Learning Phrase Representations using RNN Encoder–Decoder for Statistical Machine
    Translation", EMNLP 2014.

    Args:
        vocabulary: Number of token ids, padding included; by default that of the data; unused by series.
        width: Width of an embedding, and of the state.
        dropout: Probability of dropping a feature in training.
        projection: Width of a two-layer projection below the head, for `moon`, whose paper has 256; 0: none.
    """
    check_dropout(dropout)
    check_sizes(vocabulary=vocabulary, width=width)
    last = LastStep(input_shape[0], width) if len(input_shape) == 2 else LastState(vocabulary, width)
    body = with_dropout([last], dropout)
    return projecting(body, width, classes, projection=projection)
