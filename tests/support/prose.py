"""The blocks of code in README.md and docs/, what each is, and what its tests may do with it.

A block says by its language what it is: `bash` is commands, `console` commands (after `$`) with what they
print, `python` and `toml` are what they say, and `text`, `tex` and the like are only shown. A first line
`# NAME.py` or `# NAME.toml` makes it the file of that name, beside all others of its page. A comment above a
block may say more:

    <!-- test: set rounds=1 seeds=1 -->    run its commands with these values, a shipped scenario too
    <!-- test: without data -->            its data do not exist: check it without them
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
PAGES = sorted([REPOSITORY / "README.md", *DOCS.rglob("*.md")])

RUN = ("bash", "console", "python", "toml")
SHOWN = ("text", "tex", "json", "yaml")
LANGUAGES = (*RUN, *SHOWN)

FENCE = re.compile(
    r"^(?:<!-- test: (?P<told>[^\n]*?) -->\n)?^```(?P<language>\S*)[^\n]*\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
FILE = re.compile(r"# ([\w./-]+\.(?:py|toml))\n")


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: The file it stands in.
        line: Where it begins, from 1.
        language: As it is written behind the fence.
        text: What is between the fences.
        told: What a comment above it says.
    """

    page: Path
    line: int
    language: str
    text: str
    told: str = ""

    @property
    def place(self) -> str:
        """Where it is, for people: ``docs/data.md:37``."""
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"

    @property
    def file(self) -> str | None:
        """The file that it is, if it is one."""
        found = FILE.match(self.text)
        return found[1] if found else None

    @property
    def values(self) -> list[str]:
        """The ``key=value`` words that its commands are run with."""
        verb, _, rest = self.told.partition(" ")
        return shlex.split(rest) if verb == "set" else []

    @property
    def without_data(self) -> bool:
        """Whether what it names is not there."""
        return self.told == "without data"

    def commands(self) -> list[list[str]]:
        """Return its commands, each as its words; comments are left out."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.language == "console":
            lines = [line[2:] for line in lines if line.startswith("$ ")]
        parts = (part for line in lines for part in re.split(r" && | \|\| ", line))
        return [words for part in parts if (words := shlex.split(part, comments=True))]

    def printed(self, command: int) -> list[str]:
        """Return the lines that a `console` block shows for one of its commands, but for `…`."""
        lines = re.split(r"^\$ .*\n", self.text, flags=re.MULTILINE)[command + 1].splitlines()
        return [line for line in lines if line.strip() and line.strip() != "…"]


def blocks(page: Path) -> Iterator[Block]:
    """Yield a page's blocks, from above to below."""
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        line = text.count("\n", 0, found.start("language")) + 1
        yield Block(page, line, found["language"], found["text"], found["told"] or "")


def all_blocks(*languages: str) -> list[Block]:
    """Return the blocks of all pages that are of one of these languages, or of any."""
    found = [block for page in PAGES for block in blocks(page)]
    return [block for block in found if not languages or block.language in languages]


def write_files(page: Path, folder: Path) -> list[str]:
    """Write those blocks of a page that are files; return their names."""
    names = []
    for block in blocks(page):
        if block.file is not None:
            path = folder / block.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
            names.append(block.file)
    return names


PLACEHOLDER = re.compile(r"[A-Z]{2,}(\.toml)?")
"""What a reader puts a name of their own in the place of: `SCENARIO.toml`, `DIR`."""
NOT_RUN = {
    "sbatch": "wants a batch system",
    "CUDA_VISIBLE_DEVICES=": "wants GPUs",
    "pip": "fetches packages",
    "python3 -m venv": "makes an environment to fetch packages into",
    "source": "is for a shell that goes on",
    "eval": "is for a shell that goes on",
    "bash scripts/": "makes an environment; CI runs scripts/test.sh, other tests what others begin",
    "python scripts/": "measures for minutes; tests of their own run each shortened",
}
"""How commands begin that no test of the documentation runs, and why."""


def why_not_run(words: Sequence[str]) -> str | None:
    """Return why a command is not run; None: it is."""
    command = " ".join(words)
    if words[0] == "fedkd" and any(PLACEHOLDER.fullmatch(word) for word in words):
        return "stands for many"
    return next((why for start, why in NOT_RUN.items() if command.startswith(start)), None)
