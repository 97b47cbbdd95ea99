"""The sources of a scenario's samples, and their normalisation."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from fedkd.data.dataset import Dataset
from fedkd.data.memory_budget import check_memory_budget
from fedkd.data.normalise import Statistics, as_stored, measure
from fedkd.data.partitions.from_file import read_partition_file
from fedkd.data.partitions.split_samples import hold_out
from fedkd.data.registry import load_dataset
from fedkd.data.request import ProgressCallback, SourceRequest, data_root_folder, silent
from fedkd.data.targets import TargetScale, measure_targets
from fedkd.data.transfer import PublicSamples, foreign_samples, noise
from fedkd.errors import refuse_if
from fedkd.scenario import Scenario


@dataclass(frozen=True)
class Sources:
    """The sources of a scenario's samples; `progress` is called with one line at a time."""

    scenario: Scenario
    progress: ProgressCallback = silent

    @property
    def search(self) -> tuple[Path, ...]:
        """The scenario's folders."""
        return tuple(map(Path, self.scenario.plugin_path))

    def dataset(self, name: str, args: Mapping[str, Any], key: str = "data.dataset") -> Dataset:
        """Load a data set of private samples."""
        transfer = self.scenario.data.transfer
        told = "the private data set itself would leak clients' samples; use 'holdout'"
        refuse_if((transfer.source, transfer.args) == (name, args), told, "data.transfer.source")
        return load_dataset(self._request(name, args), key=key)

    def _request(self, name: str, args: Mapping[str, Any]) -> SourceRequest:
        data = self.scenario.data
        root, integers = data_root_folder(data.root), not data.normalise
        request = SourceRequest(name, root, args, self.search, self.progress, integers, data.clients)
        # Each task of a stream holds out its own.
        whole = self.scenario.continual is None and data.transfer.source == "holdout"
        held_out = self._held_out if whole else None
        return replace(request, regression=data.is_regression, held_out=held_out)

    def _held_out(self, labels: np.ndarray, owners: np.ndarray | None) -> np.ndarray:
        data, written = self.scenario.data, None
        if data.partition.scheme == "file":
            written = read_partition_file(data.partition, data.clients, len(labels), self.search)
        return hold_out(labels, self.scenario, written, owners=owners)

    def statistics(self, dataset: Dataset) -> Statistics:
        """Return the normalisation of a data set's samples."""
        scales = self.scenario.data.normalise and dataset.kind.statistics
        return measure(dataset.train_x) if scales else as_stored(dataset.train_x)

    def target_scale(self, dataset: Dataset) -> TargetScale | None:
        """Return the scale of a data set's targets; None: its labels are classes."""
        data = self.scenario.data
        if not data.is_regression:
            return None
        return measure_targets(dataset.class_names, dataset.train_y, data.head or "gaussian")

    def public_samples(self, private: Dataset, statistics: Statistics) -> PublicSamples | None:
        """Return transfer samples that no client owns; None: they are held out."""
        transfer, seed = self.scenario.data.transfer, self.scenario.seed
        if transfer.source == "holdout":
            return None
        if transfer.source == "noise":
            told = f"noise does not fit {private.kind.plural}; use 'holdout' or another data set"
            refuse_if(not private.kind.noise, told, "data.transfer.source")
            size = 4 * transfer.size * prod(private.shape)
            check_memory_budget(size, f"{transfer.size:,} samples of noise take", "data.transfer.size")
            return PublicSamples(noise(transfer.size, private.shape, seed=seed), None)
        request = self._request(transfer.source, transfer.args)
        return foreign_samples(request, transfer.size, private, statistics, seed=seed)
