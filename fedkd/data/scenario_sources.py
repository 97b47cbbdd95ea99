"""Where a scenario's samples come from, and what they are normalised by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from fedkd.data.budget import check_fits
from fedkd.data.dataset import Dataset
from fedkd.data.normalise import Statistics, as_stored, is_integer, measure
from fedkd.data.registry import load_dataset
from fedkd.data.request import Progress, SourceRequest, data_root, silent
from fedkd.data.transfer import PublicSamples, foreign_samples, noise
from fedkd.errors import UserError
from fedkd.scenario.schema import Scenario


@dataclass(frozen=True)
class Sources:
    """Where a scenario's samples come from.

    Args:
        scenario: What to simulate.
        progress: Told one line at a time what takes long (downloads, decoding).
    """

    scenario: Scenario
    progress: Progress = silent

    @property
    def search(self) -> tuple[Path, ...]:
        """The scenario's folders."""
        return tuple(map(Path, self.scenario.plugin_path))

    def dataset(self, name: str, args: Mapping[str, Any], key: str = "data.dataset") -> Dataset:
        """Load a data set whose samples become private.

        Args:
            name: Its name.
            args: Its arguments.
            key: Scenario key that names it.

        Raises:
            UserError: Missing or malformed data, or the data set that the transfer set is drawn from.
        """
        transfer = self.scenario.data.transfer
        if (transfer.source, transfer.args) == (name, args):
            raise UserError(
                "the private data set itself would leak clients' samples; use 'holdout'",
                key="data.transfer.source",
            )
        return load_dataset(self._request(name, args), key=key)

    def _request(self, name: str, args: Mapping[str, Any]) -> SourceRequest:
        data = self.scenario.data
        return SourceRequest(
            name,
            data_root(data.root),
            args,
            self.search,
            self.progress,
            integers=not data.normalise,
            clients=data.clients,
        )

    def statistics(self, dataset: Dataset) -> Statistics:
        """Return what samples of a data set are normalised by, or what leaves them as they are stored."""
        return measure(dataset.train_x) if self.scenario.data.normalise else as_stored(dataset.train_x)

    def public_samples(self, private: Dataset, statistics: Statistics) -> PublicSamples | None:
        """Return transfer samples that are nobody's, or None where they are held out.

        Args:
            private: The data set whose samples are private.
            statistics: Of the private data.

        Raises:
            UserError: Missing or malformed data, more samples asked for than there are, or samples of another
                kind than the private ones.
        """
        transfer, seed = self.scenario.data.transfer, self.scenario.seed
        if transfer.source == "holdout":
            return None
        if transfer.source == "noise":
            if is_integer(private.train_x):
                raise UserError(
                    "the samples are integers, of which there is no noise; use 'holdout' or another data set",
                    key="data.transfer.source",
                )
            size = 4 * transfer.size * prod(private.shape)
            check_fits(size, f"{transfer.size:,} samples of noise take", "data.transfer.size")
            return PublicSamples(noise(transfer.size, private.shape, seed=seed), None)
        request = self._request(transfer.source, transfer.args)
        return foreign_samples(request, transfer.size, private, statistics, seed=seed)
