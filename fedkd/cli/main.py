"""The command line: its options and its exit status. `fedkd.cli.verbs` holds the verbs.

Exit status 0: done; 2: the user's input is wrong; 3: the run failed; 130: interrupted. A failure is one line
on standard error. Heavy imports wait until a verb needs them.
"""

import argparse
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from fedkd import __version__
from fedkd.cli import verbs
from fedkd.cli.verbs import LISTS
from fedkd.engine import INTERRUPTED_STATUS, ignore_closed_terminal, report_end, signals_as_interrupts
from fedkd.errors import FedkdError, UserError, one_line, words_of
from fedkd.plugins import contain_plugin, forbid_os_exit
from fedkd.scenario import KIND_PLURALS, ShippedKind
from fedkd.storage import expand_path

_DESCRIPTION = "Simulate federated knowledge distillation among clients of different architectures."
READER_LEFT = 141  # exit status of a program that wrote to a closed pipe: 128 + SIGPIPE


def program() -> int:
    """Run ``fedkd``: `main`, with a parent process over runs on Ray."""
    try:
        return main(supervised=True)
    finally:
        report_end()


def main(argv: Sequence[str] | None = None, *, supervised: bool = False) -> int:
    """Run one command and return its exit status; `supervised` runs on Ray may move to a child."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may lack a letter, and a name may be none
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with ignore_closed_terminal(), signals_as_interrupts():
            return _main(argv, supervised)
    except KeyboardInterrupt:  # once more, while the first was told of
        return INTERRUPTED_STATUS


def _main(argv: Sequence[str] | None, supervised: bool) -> int:
    try:
        parser = _parser()
        if "_ARGCOMPLETE" in os.environ:  # a shell asks how the line goes on
            from fedkd.cli.completion import complete

            complete(parser)
        args = parser.parse_args(argv)
        args.supervised = supervised
        with contain_plugin(), forbid_os_exit():
            args.verb(args)
        sys.stdout.flush()
        return 0
    except BrokenPipeError:
        _silence(sys.stdout)
        return READER_LEFT
    except FedkdError as error:
        if error.exit_status == INTERRUPTED_STATUS:
            _drop(error)
        return _fail(str(error), error.exit_status)
    except KeyboardInterrupt as error:
        _drop(error)
        return _fail("interrupted", INTERRUPTED_STATUS)
    except MemoryError as error:
        return _fail(f"this needs more memory than there is: {error or 'nothing is left'}", 3)
    except Exception as error:
        if os.environ.get("FEDKD_TRACEBACK"):
            raise
        hint = "internal error; set FEDKD_TRACEBACK=1 for the traceback"
        return _fail(f"{type(error).__name__}: {words_of(error)} ({hint})", 3)


def _drop(error: BaseException | None) -> None:
    """Free the frames of an interrupt silently: an object that was half made may complain when it ends."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda told: None
    try:
        while error is not None:
            traceback.clear_frames(error.__traceback__)
            error = error.__context__
    finally:
        sys.unraisablehook = hook


def _fail(message: str, status: int) -> int:
    try:
        print("error:", one_line(message), file=sys.stderr, flush=True)
    except OSError:  # nobody is there to read it
        _silence(sys.stderr)
    return status


def _silence(stream: IO[str]) -> None:
    """Redirect a stream to nowhere: Python flushes it once more at exit, which must not fail aloud."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


RENAMED_VERBS = {"deal": "partition"}


class _Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose complaints are errors like any other."""

    def error(self, message: str) -> NoReturn:
        for old, new in RENAMED_VERBS.items():
            if f"invalid choice: '{old}'" in message:
                raise UserError(f"'fedkd {old}' is 'fedkd {new}' now")
        raise UserError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="fedkd", description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"fedkd {__version__}")
    subparsers = parser.add_subparsers(metavar="VERB", required=True, title="verbs")

    def verb(name: str, action: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(verb=action)
        return sub

    run = verb("run", verbs.run_verb, "simulate a scenario")
    _add_scenario(run)
    _add_out(run, "run folder (default: a new one below runs/)")
    run.add_argument("--engine", choices=("ray", "inline"), help="short for --set engine.kind=…")
    run.add_argument("--seed", type=int, metavar="N", help="short for --set seed=N")
    _add_quiet(run)

    resume = verb("resume", verbs.resume_verb, "continue an interrupted run where it stopped")
    _add_run_folder(resume)
    resume.add_argument("--rounds", type=int, metavar="N", help="make the run longer: N rounds in all")
    _add_quiet(resume)

    bench = verb("bench", verbs.bench_verb, "run every cell of a bench and compare them, with error bars")
    _add_scenario(bench, "bench")
    _add_out(bench, "bench folder (default: runs/bench-NAME)")
    text = "list the cells and estimate the time only; a round may be run for it, plug-ins called"
    bench.add_argument("--dry-run", action="store_true", help=text)
    _add_no_plugins(bench)
    _add_quiet(bench)

    text = "search for the hyper-parameters with the highest accuracy on held-out samples, with Optuna"
    tune = verb("tune", verbs.tune_verb, text)
    _add_scenario(tune)
    text = "what to vary, e.g. training.lr=log:1e-4..1e-1 training.optimizer=adam,sgd"
    _add_words(tune, "--search", "key=range", text)
    tune.add_argument("--trials", type=int, metavar="N", help="short for --set trials=N")
    tune.add_argument("--metric", metavar="NAME", help="short for --set metric=NAME")
    _add_out(tune, "folder (default: runs/tune-NAME)")
    tune.add_argument("--dry-run", action="store_true", help="say what would be searched only")
    _add_quiet(tune)

    text = "make the page of a run or a bench, or of several runs side by side; it opens offline"
    report = verb("report", verbs.report_verb, text)
    text = "run folders, or a bench folder"
    report.add_argument("folders", nargs="+", type=_folder, metavar="DIR", help=text)
    text = "folder of report.html, or a file .html (default: the run's or bench's folder; for several, here)"
    _add_out(report, text)
    text = "follow a run from another terminal, or another machine that sees its folder, until it ends"
    watch = verb("watch", verbs.watch_verb, text)
    _add_run_folder(watch)
    watch.add_argument("--once", action="store_true", help="say where it is now, in plain lines, and leave")

    text = "list the runs below a folder: how far they are, what they reached, when"
    runs = verb("runs", verbs.runs_verb, text)
    folder: dict[str, Any] = {"type": _folder, "default": Path("runs"), "metavar": "DIR"}
    runs.add_argument("folder", nargs="?", help="default: runs", **folder)

    text = "compare two runs client by client, and say what differs in their scenarios"
    compare = verb("compare", verbs.compare_verb, text)
    _add_run_folder(compare, "ours", "A")
    _add_run_folder(compare, "theirs", "B")

    text = "write a run's trained clients as safetensors, with a model card and a loader that needs no fedkd"
    export = verb("export", verbs.export_verb, text)
    _add_run_folder(export)
    _add_out(export, "where to (default: export in the run folder)")
    export.add_argument("--round", type=int, metavar="N", help="as after this round (default: the last)")

    text = "write every client's share of a scenario's data, and the server's, for nodes of a real federation"
    partition = verb("partition", verbs.partition_verb, text)
    _add_scenario(partition)
    _add_out(partition, "where to: a folder for each", required=True)

    text = "check a scenario without running it, and say what it would do; plug-ins are imported and called"
    check = verb("check", verbs.check_verb, text)
    _add_scenario(check)
    _add_no_plugins(check)
    text = "print the JSON schema of scenario files instead, or of bench files, or of searches"
    kinds = ("scenario", "bench", "search")
    check.add_argument("--schema", nargs="?", const="scenario", choices=kinds, help=text)

    listing = verb("list", verbs.list_verb, "list what a scenario can name")
    listing.add_argument("what", nargs="?", choices=LISTS, metavar="|".join(LISTS), help="default: all")
    text = "all about one of them, e.g. strategies knfu"
    listing.add_argument("name", nargs="?", metavar="NAME", help=text)

    text = (
        "write a strategy, model or learner of your own with a scenario and a test, or a scenario for a table"
    )
    new = verb("new", verbs.new_verb, text)
    new.add_argument("kind", choices=("strategy", "model", "learner", "scenario"))
    text = "name of the module, e.g. my_idea, or of the scenario (default: the table's)"
    new.add_argument("name", nargs="?", metavar="NAME", help=text)
    text = "the scenario's table: .csv, .tsv, .jsonl, .parquet or .arrow"
    new.add_argument("--from", dest="table", metavar="FILE", help=text)
    _add_out(new, "where (default: here)", default=Path())

    text = "show what is installed, which devices Ray sees, which data sets are found"
    verb("doctor", verbs.doctor_verb, text)
    return parser


def _folder(text: str) -> Path:
    if not text or "\0" in text:
        raise UserError(f"a folder has a name without NULs, got {text!r}")
    return expand_path(text)


def _add_scenario(parser: argparse.ArgumentParser, kind: ShippedKind = "scenario") -> None:
    text = f"{kind} file, or the name of a shipped {kind}: fedkd list {KIND_PLURALS[kind]}"
    parser.add_argument("scenario", nargs="?", metavar=f"{kind.upper()}.toml", help=text)
    text = "change values of the scenario, e.g. fusion.beta=2.0 clients.0.model=mlp"
    _add_words(parser, "--set", "key=value", text)


def _add_words(parser: argparse.ArgumentParser, option: str, metavar: str, text: str) -> None:
    parser.add_argument(option, nargs="+", action="extend", default=[], metavar=metavar, help=text)


def _add_run_folder(parser: argparse.ArgumentParser, name: str = "folder", metavar: str = "DIR") -> None:
    parser.add_argument(name, type=_folder, metavar=metavar, help="run folder")


def _add_out(parser: argparse.ArgumentParser, text: str, **more: Any) -> None:
    parser.add_argument("--out", type=_folder, metavar="DIR", help=text, **more)


def _add_no_plugins(parser: argparse.ArgumentParser) -> None:
    text = "import and call nothing that is not fedkd's own; say what cannot be told without"
    parser.add_argument("--no-plugins", action="store_true", help=text)


def _add_quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="show no progress")
