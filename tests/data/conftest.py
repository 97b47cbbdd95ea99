"""Every data test has a cache of its own and no network."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedkd.scenario.schema import Scenario


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user cache, empty; the data root is the cache too unless a test says otherwise."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FEDKD_DATA", raising=False)
    return tmp_path / "cache" / "fedkd"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only `file:` addresses answer."""
    real = urllib.request.urlopen

    def urlopen(url: str, *args: Any, **kwargs: Any) -> Any:
        if not url.startswith("file:"):
            raise OSError("no network")
        return real(url, *args, **kwargs)

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)


@pytest.fixture
def scenario() -> Callable[..., Scenario]:
    """Make a scenario of a `data` table: `scenario(dataset="digits", seed=3)`."""

    def make(seed: int = 1, plugin_path: tuple[Path, ...] = (), **data: Any) -> Scenario:
        return Scenario.model_validate(
            {"seed": seed, "plugin_path": [str(folder) for folder in plugin_path], "data": data}
        )

    return make
