"""The options and exit status of the command line. `fedkd.cli.verbs` holds the verbs.

Exit status 0: done; 2: wrong input; 3: the run failed; 130: interrupted. A failure prints one line on
standard error. A verb imports heavy modules only when it needs them.
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
    """Run ``fedkd``; a parent process supervises runs on Ray."""
    try:
        return main(supervised=True)
    finally:
        report_end()


def main(argv: Sequence[str] | None = None, *, supervised: bool = False) -> int:
    """Run one command and return its exit status; with `supervised`, runs on Ray use a child process."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may lack a character
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with ignore_closed_terminal(), signals_as_interrupts():
            return _main(argv, supervised)
    except KeyboardInterrupt:  # a second one, while the first was being reported
        return INTERRUPTED_STATUS


def _main(argv: Sequence[str] | None, supervised: bool) -> int:
    try:
        parser = _parser()
        if "_ARGCOMPLETE" in os.environ:  # a shell asks for completions
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
        return _fail(f"out of memory: {error or 'no details'}", 3)
    except Exception as error:
        if os.environ.get("FEDKD_TRACEBACK"):
            raise
        hint = "internal error; set FEDKD_TRACEBACK=1 for the traceback"
        return _fail(f"{type(error).__name__}: {words_of(error)} ({hint})", 3)


def _drop(error: BaseException | None) -> None:
    """Free the frames of an interrupt silently: a half-built object may raise in its finalizer."""
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
    except OSError:  # standard error is closed
        _silence(sys.stderr)
    return status


def _silence(stream: IO[str]) -> None:
    """Redirect a stream to the null device, as Python flushes it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


RENAMED_VERBS = {"deal": "partition"}


class _Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that raises a `UserError`."""

    def error(self, message: str) -> NoReturn:
        for old, new in RENAMED_VERBS.items():
            if f"invalid choice: '{old}'" in message:
                raise UserError(f"'fedkd {old}' is now 'fedkd {new}'")
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
    resume.add_argument("--rounds", type=int, metavar="N", help="extend the run to N rounds in all")
    _add_quiet(resume)

    bench = verb("bench", verbs.bench_verb, "run every cell of a bench and compare the results")
    _add_scenario(bench, "bench")
    _add_out(bench, "bench folder (default: runs/bench-NAME)")
    text = "list the cells and estimate the time; this may call plug-ins and run one round"
    bench.add_argument("--dry-run", action="store_true", help=text)
    _add_no_plugins(bench)
    _add_quiet(bench)

    text = "search for the hyper-parameters with the highest held-out accuracy, with Optuna"
    tune = verb("tune", verbs.tune_verb, text)
    _add_scenario(tune)
    text = "keys and ranges to search, e.g. training.lr=log:1e-4..1e-1 training.optimizer=adam,sgd"
    _add_words(tune, "--search", "key=range", text)
    tune.add_argument("--trials", type=int, metavar="N", help="short for --set trials=N")
    tune.add_argument("--metric", metavar="NAME", help="short for --set metric=NAME")
    _add_out(tune, "search folder (default: runs/tune-NAME)")
    tune.add_argument("--dry-run", action="store_true", help="describe the search without running it")
    _add_quiet(tune)

    text = "write a run, a bench, or several runs side by side as one HTML page"
    report = verb("report", verbs.report_verb, text)
    text = "run folders, or a bench folder"
    report.add_argument("folders", nargs="+", type=_folder, metavar="DIR", help=text)
    text = "folder of report.html, or an .html file (default: the given folder; for several, the working one)"
    _add_out(report, text)
    text = "follow a run from another terminal or machine until it ends"
    watch = verb("watch", verbs.watch_verb, text)
    _add_run_folder(watch)
    watch.add_argument("--once", action="store_true", help="print the present state in plain lines and exit")

    text = "list the runs below a folder with their progress, results and dates"
    runs = verb("runs", verbs.runs_verb, text)
    folder: dict[str, Any] = {"type": _folder, "default": Path("runs"), "metavar": "DIR"}
    runs.add_argument("folder", nargs="?", help="folder to search (default: runs)", **folder)

    text = "compare two runs client by client, and show how their scenarios differ"
    compare = verb("compare", verbs.compare_verb, text)
    _add_run_folder(compare, "ours", "A")
    _add_run_folder(compare, "theirs", "B")

    text = "export a run's trained models as safetensors, with a model card and a standalone loader"
    export = verb("export", verbs.export_verb, text)
    _add_run_folder(export)
    _add_out(export, "target folder (default: export in the run folder)")
    export.add_argument("--round", type=int, metavar="N", help="export the state after round N")

    text = "attack a round's uploads as a curious server: label mix and membership"
    audit = verb("audit", verbs.audit_verb, text)
    _add_run_folder(audit)
    audit.add_argument("--round", type=int, metavar="N", help="round of the uploads (default: the last)")
    text = "most training samples of each client, and as many others (default: 500)"
    audit.add_argument("--samples", type=int, metavar="N", default=500, help=text)
    text = "δ of the lower bound of ε (default: 1e-5)"
    audit.add_argument("--delta", type=float, metavar="X", default=1e-5, help=text)
    audit.add_argument("--seed", type=int, metavar="N", default=0, help="seed of the attacks (default: 0)")
    _add_quiet(audit)

    text = "write the data of every client and of the server, for the nodes of a real federation"
    partition = verb("partition", verbs.partition_verb, text)
    _add_scenario(partition)
    _add_out(partition, "target folder; every client and the server get a folder in it", required=True)

    text = "check a scenario without running it; plug-ins are imported and called"
    check = verb("check", verbs.check_verb, text)
    _add_scenario(check)
    _add_no_plugins(check)
    text = "print the JSON schema of scenario, bench or search files instead"
    kinds = ("scenario", "bench", "search")
    check.add_argument("--schema", nargs="?", const="scenario", choices=kinds, help=text)

    listing = verb("list", verbs.list_verb, "list the names that a scenario can use")
    listing.add_argument("what", nargs="?", choices=LISTS, metavar="|".join(LISTS), help="default: all")
    text = "show the details of one name, e.g. strategies knfu"
    listing.add_argument("name", nargs="?", metavar="NAME", help=text)

    text = "create the files of a new strategy, model or learner, or a scenario for a table"
    new = verb("new", verbs.new_verb, text)
    parts = ("strategy", "model", "learner", "scenario")
    new.add_argument("kind", choices=parts, help="what to create")
    text = "name of the module, e.g. my_idea, or of the scenario (default: the table's)"
    new.add_argument("name", nargs="?", metavar="NAME", help=text)
    text = "table of the scenario: .csv, .tsv, .jsonl, .parquet or .arrow"
    new.add_argument("--from", dest="table", metavar="FILE", help=text)
    _add_out(new, "target folder (default: the working folder)", default=Path())

    text = "show the installed packages, the devices that Ray sees, and the data sets"
    verb("doctor", verbs.doctor_verb, text)
    return parser


def _folder(text: str) -> Path:
    if not text or "\0" in text:
        raise UserError(f"must be a folder name without NUL characters, got {text!r}")
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
    text = "import and call only fedkd's own code; list what this leaves unchecked"
    parser.add_argument("--no-plugins", action="store_true", help=text)


def _add_quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="show no progress")
