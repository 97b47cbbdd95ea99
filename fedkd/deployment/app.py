"""The Flower app of a deployed federation names fedkd's two apps, without code.

`flwr run` sends it to the nodes, so every node runs its owner's fedkd.
"""

from __future__ import annotations

from pathlib import Path

import tomli_w

from fedkd import __version__
from fedkd.federation.apps.context import DATA
from fedkd.federation.apps.server_app import WAITS


def write_app(folder: Path) -> None:
    """Write the app into a new folder."""
    folder.mkdir(parents=True)
    flower = {
        "publisher": "fedkd",
        "components": {
            "serverapp": "fedkd.federation.apps.server_app:app",
            "clientapp": "fedkd.federation.apps.client_app:app",
        },
        "config": {DATA: "", "out": "", **WAITS},
    }
    project = {
        "name": "fedkd-federation",
        "version": __version__,
        "description": "A federation of fedkd's clients, each with its own data",
        "license": "Apache-2.0",
        "dependencies": [],
    }
    text = tomli_w.dumps({"project": project, "tool": {"flwr": {"app": flower}}})
    (folder / "pyproject.toml").write_text(text, encoding="utf-8")
