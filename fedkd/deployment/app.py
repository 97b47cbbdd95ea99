"""The Flower app of a deployed federation: it names fedkd's two apps, and holds no code.

What `flwr run` sends to the SuperLink and on to the nodes is this folder. So every node works with the fedkd
that its owner has installed, and not with one that a message has brought.
"""

from __future__ import annotations

from pathlib import Path

import tomli_w

from fedkd import __version__
from fedkd.federation.node import DATA
from fedkd.federation.server_app import WAITS


def write_app(folder: Path) -> None:
    """Write the app into a new folder.

    Raises:
        OSError: It cannot be written.
    """
    folder.mkdir(parents=True)
    flower = {
        "publisher": "fedkd",
        "components": {
            "serverapp": "fedkd.federation.server_app:app",
            "clientapp": "fedkd.federation.client_app:app",
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
