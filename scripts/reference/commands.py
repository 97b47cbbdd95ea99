"""Every verb of the command line, its words and its options."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from fedkd.cli.main import _parser
from reference.markdown import code, page, prose, table


def commands_page() -> str:
    """Return the page of the command line."""
    return page(
        "Command line",
        "Exit status: 0 done; 2 the input is wrong, said in one line; 3 the run failed, with client and"
        " round named; 130 interrupted, with the state saved and the command to go on. Shells complete"
        " verbs, names and keys of `--set` after `pip install '.[completion]'` and"
        ' `eval "$(register-python-argcomplete fedkd)"`.',
        *(_verb(name, parser) for name, parser in verbs().items()),
    )


def verbs() -> dict[str, argparse.ArgumentParser]:
    """Return the parser of every verb."""
    actions = _parser()._actions
    return next(dict(a.choices) for a in actions if isinstance(a, argparse._SubParsersAction))


def _verb(name: str, parser: argparse.ArgumentParser) -> str:
    usage = " ".join(parser.format_usage().removeprefix("usage: ").replace("[-h] ", "").split())
    told = parser.description or ""
    return "\n\n".join(
        text
        for text in (
            f"## fedkd {name}",
            f"{told[:1].upper()}{prose(told[1:])}.",
            f"```text\n{usage}\n```",
            table(("word", "what it is"), _words(parser)),
        )
        if text
    )


def _words(parser: argparse.ArgumentParser) -> Iterator[list[str]]:
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        shown = action.metavar or ("|".join(map(str, action.choices)) if action.choices else "")
        names = " ".join(filter(None, [", ".join(action.option_strings), str(shown)])) or action.dest
        choices = f" (one of {', '.join(map(str, action.choices))})" if action.choices and action.help else ""
        yield [code(names), prose((action.help or "") + choices)]
