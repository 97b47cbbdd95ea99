"""FedWeIT's memory on one client, and the weights that follow from it."""

import torch
from torch import Tensor, nn

from fedkd.continual.adapters.decomposition import Layout
from fedkd.continual.context import LearnerContext
from fedkd.continual.learner import Tensors
from fedkd.continual.masks.masks import pack, unpack
from fedkd.continual.state import LearnerState, TableField, Value

VALUES, BITS, STAMP = "values", "bits", "stamp"


class WeITState(LearnerState):
    """Masks, parts and attention by task and weight."""

    mask = TableField()
    """Scores of masks, by task and weight."""
    part = TableField()
    """Own parts, by task and weight."""
    own = TableField()
    """Heads, biases and the like, by task and parameter."""
    target = TableField()
    """B ⊙ m + A at the end of the last task, by task and weight."""
    attention = TableField()
    """Of the present task: α, one number for each lent part, by weight."""
    lenders = Value()
    """Of the present task: client and task of each lent part, ``[K, 2]``."""
    borrowed = TableField()
    """Σ α A of an ended task, sparse, by task."""
    known = TableField()
    """Parts of others, sparse, with the time of their fusion, by client and task."""

    def __init__(self, context: LearnerContext) -> None:
        super().__init__(context)
        self.context = context

    def layout(self) -> Layout:
        """Return the layout of the weights that have parts."""
        return self.context.once("layout", lambda: Layout.of(trained_shapes(self.context.network)))

    def bases(self) -> Tensors:
        """Return the weights that have parts."""

        def found() -> Tensors:
            names = self.layout().shapes
            return {name: p for name, p in self.context.network.named_parameters() if name in names}

        return self.context.once("bases", found)

    def has_begun(self, task: int) -> bool:
        """Return whether a task has been trained on."""
        return (task, next(iter(self.layout().shapes))) in self.part

    def begun(self) -> list[int]:
        """Return the tasks that have been trained on, in order."""
        return [task for task in range(self.context.task + 1) if self.has_begun(task)]

    def gate(self, task: int, name: str) -> Tensor:
        """Return m of a task and weight, ``[out]``."""
        return torch.sigmoid(self.mask[task, name])

    def kept(self, task: int) -> Tensors:
        """Return ``B ⊙ m + A`` of a task that has begun, by name."""
        found = {}
        for name, base in self.bases().items():
            gate = self.gate(task, name).view(-1, *[1] * (base.dim() - 1))
            found[name] = base * gate + self.part[task, name]
        return found

    def stamps(self) -> dict[tuple[int, int], int]:
        """Return the time of fusion of each other client's part, by client and task."""
        stamps = {}
        for name, values in self.known.part().items():
            client, task, kind = name.split("/")
            if kind == STAMP:
                stamps[int(client), int(task)] = int(values)
        return stamps

    def lent(self, task: int) -> Tensors:
        """Return ``Σ_i α_i A_i`` of a task, by name; empty if nothing was lent."""
        kept = self.borrowed.part(task)
        if kept:
            return self._by_name(kept)
        if task != self.context.task or self.lenders is None or not len(self.lenders):
            return {}
        parts = self.context.once("lent", self._lent_parts)
        return {name: torch.tensordot(self.attention[name], own, dims=1) for name, own in parts.items()}

    def _lent_parts(self) -> Tensors:
        """Return the parts that the present task is lent, ``[K, *shape]`` by name."""
        assert self.lenders is not None
        parts = [self._by_name(self.known.part(client, task)) for client, task in self.lenders.tolist()]
        return {name: torch.stack([part[name] for part in parts]) for name in self.layout().shapes}

    def _by_name(self, sparse: Tensors) -> Tensors:
        """Return sparse numbers ``[P]`` as weights."""
        layout = self.layout()
        there = unpack(sparse[BITS], (layout.size,))
        zeros = torch.zeros(layout.size, device=there.device)
        return layout.split(zeros.masked_scatter(there, sparse[VALUES]))


def trained_shapes(network: nn.Module) -> dict[str, torch.Size]:
    """Return the shapes of a network's trained parameters by name."""
    return {name: p.shape for name, p in network.named_parameters() if p.requires_grad}


def sparse(flat: Tensor) -> Tensors:
    """Return the nonzero numbers of ``[P]``, and a bit per number for their places."""
    there = flat != 0
    return {VALUES: flat[there], BITS: pack(there)}
