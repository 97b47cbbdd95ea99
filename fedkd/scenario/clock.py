"""The tables of a scenario about simulated time, and about rounds that wait for nobody."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedkd.scenario.sections import PositiveInt, Section

Spread = Annotated[float, Field(ge=0.0, le=10.0)]
"""σ of the logarithm of a factor: 0, all clients are alike; 1, one in three is 2.7 times faster or slower."""
Percent = Annotated[int, Field(ge=1, le=100)]


class Clock(Section):
    """Simulated time of jobs and messages, drawn from the seed.

    Where rounds wait for everybody it changes nothing that is learned.
    """

    work: Literal["drawn", "steady", "steps"] = "drawn"
    """Time of a job, times a factor of the client: `drawn` (`seconds` · |N(0, 1)|, anew for every job),
    `steady` (`seconds`), `steps` (`seconds` a batch, those of distillation included)."""
    seconds: Annotated[float, Field(gt=0.0, le=1e9)] = 1.0
    """Simulated seconds, of a client whose factor is 1."""
    spread: Spread = 1.0
    """σ of a client's factor, which is log-normal and drawn once: 0, all are equally fast."""
    bandwidth: Annotated[float, Field(gt=0.0, le=1e9)] | None = None
    """Megabits a second of a client's network whose factor is 1, each way; absent: bytes take no time."""
    bandwidth_spread: Spread = 0.0
    """σ of the factor of a client's bandwidth, log-normal and drawn once."""
    latency: Annotated[float, Field(ge=0.0, le=1e9)] = 0.0
    """Simulated seconds that a message takes however small it is, each way."""
    targets: list[Percent] = Field(default=[50, 70, 80, 90], max_length=100)
    """Accuracies in percent; the summary says when the federation's mean reached each of them first."""


class Asynchronous(Section):
    """Rounds that wait for nobody: a round is a new version of what the server has, after so many uploads."""

    buffer: PositiveInt = 10
    """K: uploads after which the server fuses. 1 takes every upload as it comes; FedBuff's paper takes 10."""
    concurrency: PositiveInt | None = None
    """Clients at work at a time, at most; whoever comes next is drawn from the seed. Absent: all of them."""
    staleness: Annotated[float, Field(ge=0.0, le=100.0)] = 0.5
    """a of s(τ) = (1 + τ)^−a, the weight of an upload that began τ versions ago; a strategy's
    `stale_decay` wins."""
