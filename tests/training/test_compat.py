"""Private names of torch stand in two files, one of them for the models' floor."""

from __future__ import annotations

import re
from pathlib import Path

import fedkd

PRIVATE = re.compile(
    r"torch\._[A-Za-z]|torch\.utils\._|import _(?:Batch)?Norm\w*|\._(?:schema|version|overloadpacket)\b"
    r"|\._(?:forward|backward)(?:_pre)?_hooks|_reversed_padding"
)


def test_private_names_of_torch_stand_in_compat() -> None:
    root = Path(fedkd.__file__).parent
    found = {str(p.relative_to(root)) for p in root.rglob("*.py") if PRIVATE.search(p.read_text("utf-8"))}
    assert found <= {"training/compat.py", "models/fast/kernel_mode.py"}
