"""Record clients' measurements of a round, and the federation's means."""

from collections.abc import Mapping, Set
from math import isnan, nan
from pathlib import Path
from typing import Any, cast

import numpy as np
from flwr.app import Message

from fedkd.clients import SPLITS, TaskMetric, is_task_metric
from fedkd.federation.messages import records as msg
from fedkd.federation.messages.records import metrics_of
from fedkd.federation.messages.server_gate import TRAIN_FIGURES, TRAIN_LOSS
from fedkd.fusion import (
    BlockedWeights,
    best_sender_hits,
    chance_accuracy,
    effective_neighbours,
    off_diagonal_mean,
    rank_correlation,
)
from fedkd.plan import Plan, listed_metrics, poisoned_clients, separate_model_accuracies
from fedkd.scenario import run_digest
from fedkd.server import FusionReport, Links
from fedkd.tracking import Recorder, Split, TransferMap, write_links, write_neighbours, write_transfer_map

EVALUATED: tuple[tuple[Split, str, str], ...] = (
    *(
        (split, name, f"{name}_{split}")
        for split in SPLITS
        for name in ("accuracy_before_fusion", "accuracy", "loss", "fusion_gain")
    ),
    *(("global", name, name) for name in ("positive_flips", "negative_flips")),
    *(("train", name, name) for name in ("agreement", "guidance_kl")),
)
"""Split and name of every metric of an evaluation, and its key in a reply."""

Replies = Mapping[int, Message]
"""By client, in client order."""


class Measurements:
    """Recorder of the figures of replies."""

    def __init__(self, plan: Plan, recorder: Recorder, folder: Path) -> None:
        self._plan, self._schedule = plan, plan.schedule
        self._recorder, self._folder = recorder, folder
        listed = listed_metrics(plan.scenario)
        self._evaluated = (*EVALUATED, *separate_model_accuracies(plan.strategy), *listed)
        self._run, self._poisoned = run_digest(plan.scenario), poisoned_clients(plan.scenario)

    def figures(self, phase: str) -> tuple[str, ...]:
        """Return the metrics that every reply must have."""
        measured = (msg.NUM_EXAMPLES, *(key for _, _, key in self._evaluated))
        of_phase = {"train": TRAIN_FIGURES, "evaluate": measured, "finish": (*measured, TRAIN_LOSS)}
        return of_phase.get(phase, ())

    def training(self, round: int, replies: Replies) -> float | None:
        """Record a round's local training; return the mean loss, None without any step."""
        losses = {client: metrics_of(reply)[TRAIN_LOSS] for client, reply in replies.items()}
        trained = {client: loss for client, loss in losses.items() if not isnan(loss)}
        self._record_curves(round, replies)
        return self._record(round, "train", "loss", trained) if trained else None

    def failures(self, round: int, counts: Mapping[tuple[int, Split, str], int]) -> None:
        """Record the number of failures by client, split and metric, and their sum."""
        for split, metric in sorted({(split, metric) for _, split, metric in counts}):
            of_clients = {client: n for (client, *kind), n in counts.items() if kind == [split, metric]}
            for client in sorted(of_clients):
                self._recorder.metric(metric, of_clients[client], round=round, client=client, split=split)
            self._recorder.metric(metric, sum(of_clients.values()), round=round, split=split)

    def fusion(self, round: int, report: FusionReport | None) -> float | None:
        """Record effective neighbours and the share of predictions left by filters; keep the matrices."""
        if report is None:
            return None
        tables = report.weights, report.distances, report.left_out
        write_neighbours(self._folder, round, report.clients, *tables, run=self._run)
        if report.heard is not None:
            self._recorder.metric("predictions_heard", report.heard, round=round, split="train")
        weights = report.weights
        effective = (
            weights.effective if isinstance(weights, BlockedWeights) else effective_neighbours(weights)
        )
        counts = dict(zip(report.clients, effective.tolist(), strict=True))
        receivers = {client: counts[client] for client in report.present}
        return self._record(round, "train", "effective_neighbours", receivers)

    def transferability(self, found: TransferMap) -> None:
        """Record how well each predictor ranks the senders of every receiver, and keep the whole map."""
        write_transfer_map(self._folder, found, self._run)
        rows: list[tuple[Split, str, np.ndarray]] = []
        for part, gain in found.gains.items():
            rows += [
                (part, "transfer_gain", off_diagonal_mean(gain)),
                (part, "hit_chance", chance_accuracy(gain)),
            ]
            for name, guess in found.predicted.items():
                rows.append((part, f"rank_{name}", rank_correlation(guess, gain)))
                rows.append((part, f"hit_{name}", best_sender_hits(guess, gain)))
        if found.transfer_rate is not None:
            rows.append(("train", "transfer_rate", off_diagonal_mean(found.transfer_rate)))
        for split, metric, values in rows:
            by_client = zip(found.clients, values.tolist(), strict=True)
            known = {client: value for client, value in by_client if not isnan(value)}
            if known:
                self._record(found.round, split, metric, known)

    def links(self, round: int, links: Links | None) -> None:
        """Record every client's traffic over its links, and keep the links."""
        if links is None:
            return
        write_links(self._folder, round, links.clients, links.heard, links.sizes, run=self._run)
        for metric, sizes in (
            ("bytes_sent", links.sizes.sum(axis=0)),
            ("bytes_received", links.sizes.sum(axis=1)),
        ):
            self._record(round, "train", metric, dict(zip(links.clients, sizes.tolist(), strict=True)))
        number = int(links.heard.sum())
        self._recorder.metric("links", number, round=round, split="train")
        if number:
            self._recorder.metric("bytes_per_link", links.total / number, round=round, split="train")

    def server(self, round: int, figures: Mapping[str, float | None], task: int | None = None) -> None:
        """Record the server's figures by metric, of a finished `task` if given; None is left out."""
        for name, value in figures.items():
            if value is not None:
                self._recorder.metric(name, value, round=round, split="train", task=task)

    def evaluation(self, round: int, replies: Replies) -> dict[str, float]:
        """Record an evaluation; return the means by names of `RoundReport.metrics` (round 0: of tasks)."""
        rows = {client: metrics_of(reply) for client, reply in replies.items()}
        return self.measured(round, rows) | self.choices(round, replies)

    def measured(self, round: int, rows: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
        """Record an evaluation's metrics, in client order (see `evaluation`)."""
        means = {}
        for split, metric, key in self._evaluated if round > 0 else ():
            values = {client: row[key] for client, row in rows.items() if not isnan(row[key])}
            if values:
                means[f"{split}/{metric}"] = self._record(round, split, metric, values)
        sample = self._plan.test_sample(round)
        if sample is not None:
            self._recorder.metric("test_samples", sample, round=round, split="global")
        guided = {client for client, row in rows.items() if not isnan(row["fusion_gain_global"])}
        if guided:
            number = len(self._counted(guided))
            means["train/guided_clients"] = float(number)
            self._recorder.metric("guided_clients", number, round=round, split="train")
        return means | self._record_tasks(round, rows)

    def _record_tasks(self, round: int, rows: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
        means = {}
        keys = dict.fromkeys(key for row in rows.values() for key in row if is_task_metric(key))
        for key in keys:
            values = {client: row[key] for client, row in rows.items() if not isnan(row.get(key, nan))}
            if values:
                metric, split, task = TaskMetric.from_key(key)
                means[key] = self._record(round, cast("Split", split), metric, values, task=task)
        return means

    def choices(self, round: int, replies: Replies) -> dict[str, float]:
        """Record clients' choices, and learners' figures at the end of a task; return the means."""
        records: dict[int, Mapping[str, Any]] = {
            client: reply.content.config_records[msg.LEARNER]
            for client, reply in replies.items()
            if msg.LEARNER in reply.content
        }
        means = {}
        for name in dict.fromkeys(name for record in records.values() for name in record):
            values = {client: float(record[name]) for client, record in records.items() if name in record}
            for task, of_task in self._by_task(round, values).items():
                means[f"train/{name}"] = self._record(round, "train", name, of_task, task=task)
        return means

    def _by_task(self, round: int, values: Mapping[int, float]) -> dict[int | None, dict[int, float]]:
        found: dict[int | None, dict[int, float]] = {}
        for client in sorted(values, key=lambda client: (self._schedule.task(client, round) or 0, client)):
            found.setdefault(self._schedule.task(client, round), {})[client] = values[client]
        return found

    def _record_curves(self, round: int, replies: Replies) -> None:
        for client, reply in replies.items():
            curves: Any = reply.content.config_records[msg.CURVES] if msg.CURVES in reply.content else {}
            about: Any = {"round": round, "client": client, "task": self._schedule.task(client, round)}
            for split, curve in curves.items():
                for epoch, accuracy in enumerate(curve, start=1):
                    self._recorder.epoch(accuracy, **about, epoch=epoch, split=split)

    def _record(
        self, round: int, split: Split, metric: str, values: Mapping[int, float], task: int | None = None
    ) -> float:
        """Record one metric of every client and the mean, without poisoned clients; return the mean."""
        for client in sorted(values):
            own = self._schedule.task(client, round) if task is None else task
            self._recorder.metric(metric, values[client], round=round, client=client, split=split, task=own)
        mean = float(np.mean([values[client] for client in self._counted(values.keys())]))
        self._recorder.metric(metric, mean, round=round, split=split, task=task)
        return mean

    def _counted(self, clients: Set[int]) -> list[int]:
        return sorted(clients - self._poisoned) or sorted(clients)
