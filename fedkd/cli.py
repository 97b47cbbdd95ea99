"""The command line: run · resume · bench · report · watch · runs · compare · check · export · list · new ·
doctor.

Exit status 0: done; 2: the user's input is wrong; 3: the run failed; 130: interrupted. A failure is one line
on standard error. Nothing heavier than argparse is imported before a verb needs it.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NoReturn

from fedkd import __version__
from fedkd.errors import FedkdError, RunFailed, UserError, one_line, words_of
from fedkd.plugins import contained
from fedkd.scenario.shipped import LISTED, Kind, find_shipped, names_of
from fedkd.signals import interrupting, outliving_terminal

LISTS = ("strategies", "models", "learners", "datasets", "partitions", *LISTED.values())
_DESCRIPTION = "Simulate federated knowledge distillation among clients of different architectures."
INTERRUPTED = 130
READER_LEFT = 141
"""Status of a program that wrote to a closed pipe: 128 + SIGPIPE, as a shell reports it."""


def program() -> int:
    """Be the program ``fedkd``: `main`, with a parent process over what runs on Ray."""
    return main(supervised=True)


def main(argv: Sequence[str] | None = None, *, supervised: bool = False) -> int:
    """Run one command and return its exit status.

    Args:
        argv: Words after ``fedkd``; absent: those of this process.
        supervised: Whether what runs on Ray may do so in a child process (see `fedkd.supervisor`).
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may lack a letter, and a name may be none
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with outliving_terminal(), interrupting():
            return _main(argv, supervised)
    except KeyboardInterrupt:  # once more, while the first was told of
        return INTERRUPTED


def _main(argv: Sequence[str] | None, supervised: bool) -> int:
    try:
        parser = _parser()
        if "_ARGCOMPLETE" in os.environ:  # a shell asks how the line goes on
            from fedkd.completion import complete

            complete(parser)
        args = parser.parse_args(argv)
        args.supervised = supervised
        with contained():
            args.verb(args)
        sys.stdout.flush()
        return 0
    except BrokenPipeError:
        _silence(sys.stdout)
        return READER_LEFT
    except FedkdError as error:
        if error.exit_status == INTERRUPTED:
            _drop(error)
        return _fail(str(error), error.exit_status)
    except KeyboardInterrupt as error:
        _drop(error)
        return _fail("interrupted", INTERRUPTED)
    except MemoryError as error:
        return _fail(f"this needs more memory than there is: {error or 'nothing is left'}", 3)
    except Exception as error:
        if os.environ.get("FEDKD_TRACEBACK"):
            raise
        hint = "internal error; set FEDKD_TRACEBACK=1 for the traceback"
        return _fail(f"{type(error).__name__}: {words_of(error)} ({hint})", 3)


def _drop(error: BaseException) -> None:
    """Let go of what an interrupt has stopped, without a word.

    It may have come while an object was being made, whose end Python then finds fault with aloud.
    """
    hook, sys.unraisablehook = sys.unraisablehook, lambda told: None
    try:
        known: BaseException | None = error
        while known is not None:
            traceback.clear_frames(known.__traceback__)
            known = known.__context__
    finally:
        sys.unraisablehook = hook


def _fail(message: str, status: int) -> int:
    try:
        print("error:", one_line(message), file=sys.stderr, flush=True)
    except OSError:  # nobody is there to read it
        _silence(sys.stderr)
    return status


def _silence(stream: IO[str]) -> None:
    """Have a stream go nowhere: Python flushes it once more on leaving, which must not fail aloud."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _run(args: argparse.Namespace) -> None:
    from fedkd.plan.load import load_plan

    path, overrides = _scenario_words(args)
    if args.engine:
        overrides.append(f"engine.kind={args.engine}")
    plan = load_plan(path, overrides, seed=args.seed)
    _supervise(args, lambda: plan.scenario.engine.kind == "ray")
    # Only now what takes a second to import: a mistake in the scenario is told at once.
    from fedkd.runner import run
    from fedkd.tracking.progress import make_progress

    with _naming(path):
        run(plan, out=args.out, observers=[make_progress(quiet=args.quiet)], progress=False)


def _resume(args: argparse.Namespace) -> None:
    from fedkd.run_folder import plan_of_run

    _supervise(args, lambda: plan_of_run(args.folder).scenario.engine.kind == "ray")
    from fedkd.runner import resume
    from fedkd.tracking.progress import make_progress

    shown = [make_progress(quiet=args.quiet)]
    resume(args.folder, rounds=args.rounds, observers=shown, progress=False)


def _bench(args: argparse.Namespace) -> None:
    from fedkd.benchmark.bench import bench, describe_plan, plan_bench
    from fedkd.benchmark.schema import load_bench

    path, overrides = _scenario_words(args, "bench")
    if args.dry_run:
        for line in describe_plan(plan_bench(path, overrides, args.out, plug_ins=not args.no_plugins)):
            print(line, flush=True)
        return
    if args.no_plugins:
        raise UserError("only with --dry-run: cells cannot run without what they name", key="--no-plugins")
    _supervise(args, lambda: load_bench(path, overrides).spec.parallel)
    result = bench(path, out=args.out, overrides=overrides, quiet=args.quiet)
    if not args.quiet:
        print(f"\n{result.table()}\nresults  {result.folder}")
    if result.failed:
        raise RunFailed(
            f"{len(result.failed)} of {len(result.cells)} cells failed, see {result.folder / 'cells.csv'}; "
            "the same command tries them again"
        )


def _report(args: argparse.Namespace) -> None:
    from fedkd.report.page.write import write_report

    print(f"report  {write_report(args.folders, args.out)}")


def _supervise(args: argparse.Namespace, on_ray: Callable[[], bool]) -> None:
    if args.supervised and on_ray():
        from fedkd.supervisor import split_off

        split_off()


def _watch(args: argparse.Namespace) -> None:
    from fedkd.watch import watch

    watch(args.folder, once=args.once)


def _runs(args: argparse.Namespace) -> None:
    from fedkd.overview.runs import runs

    for line in runs(args.folder).lines():
        print(line)


def _compare(args: argparse.Namespace) -> None:
    from fedkd.overview.compare import compare

    for line in compare(args.ours, args.theirs).lines():
        print(line)


def _export(args: argparse.Namespace) -> None:
    from fedkd.trained.export import export

    made = export(args.folder, args.out, round=args.round, progress=lambda line: print(line, flush=True))
    for index, why in made.left_out.items():
        print(f"client {index} is left out: {why}")
    for index in made.without_network:
        print(f"client {index}: its network could not be written down, load.py wants it handed over")
    print(f"{len(made.clients)} clients  {made.folder}")


def _check(args: argparse.Namespace) -> None:
    if args.schema:
        import json

        if args.schema == "bench":
            from fedkd.benchmark.json_schema import bench_json_schema as schema
        else:
            from fedkd.plan.json_schema import json_schema as schema
        print(json.dumps(schema(), indent=2, ensure_ascii=False))
        return
    from fedkd.check import check, check_unopened
    from fedkd.plan.load import load_plan, load_unopened
    from fedkd.plan.unopened import Unopened

    path, overrides = _scenario_words(args)
    plan = (load_unopened if args.no_plugins else load_plan)(path, overrides)
    with _naming(path):
        lines = check_unopened(plan, print) if isinstance(plan, Unopened) else check(plan, print)
        for line in lines:
            print(line)
    print("ok")


def _list(args: argparse.Namespace) -> None:
    from fedkd import catalogue

    chosen = [args.what] if args.what else LISTS
    for position, what in enumerate(chosen):
        if len(chosen) > 1:
            print(f"{chr(10) * (position > 0)}{what}")
        for line in getattr(catalogue, what)():
            print(f"  {line}" if len(chosen) > 1 else line)


def _new(args: argparse.Namespace) -> None:
    from fedkd.scaffold import new

    for line in new(args.kind, args.name, args.out):
        print(line)


def _doctor(args: argparse.Namespace) -> None:
    from fedkd.doctor import examine

    for line in examine():
        print(line, flush=True)


class _Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose complaints are errors like any other."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="fedkd", description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"fedkd {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True, title="verbs")

    def verb(name: str, action: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(verb=action)
        return sub

    run = verb("run", _run, "simulate a scenario")
    _add_scenario(run)
    run.add_argument("--out", type=_folder, metavar="DIR", help="run folder (default: a new one below runs/)")
    run.add_argument("--engine", choices=("ray", "inline"), help="short for --set engine.kind=…")
    run.add_argument("--seed", type=int, metavar="N", help="short for --set seed=N")
    _add_quiet(run)

    resume = verb("resume", _resume, "continue an interrupted run where it stopped")
    resume.add_argument("folder", type=_folder, metavar="DIR", help="run folder")
    resume.add_argument("--rounds", type=int, metavar="N", help="make the run longer: N rounds in all")
    _add_quiet(resume)

    bench = verb("bench", _bench, "run every cell of a bench and compare them, with error bars")
    _add_scenario(bench, "bench")
    bench.add_argument("--out", type=_folder, metavar="DIR", help="bench folder (default: runs/bench-NAME)")
    text = "list the cells and estimate the time only; a round may be run for it, plug-ins called"
    bench.add_argument("--dry-run", action="store_true", help=text)
    _add_no_plugins(bench)
    _add_quiet(bench)

    text = "make the page of a run or a bench, or of several runs side by side; it opens offline"
    report = verb("report", _report, text)
    report.add_argument(
        "folders", nargs="+", type=_folder, metavar="DIR", help="run folders, or a bench folder"
    )
    text = "the page (default: report.html in the folder, or for several here)"
    report.add_argument("--out", type=_folder, metavar="FILE", help=text)
    text = "follow a run from another terminal, or another machine that sees its folder, until it ends"
    watch = verb("watch", _watch, text)
    watch.add_argument("folder", type=_folder, metavar="DIR", help="run folder")
    watch.add_argument("--once", action="store_true", help="say where it is now, in plain lines, and leave")

    runs = verb("runs", _runs, "list the runs below a folder: how far they are, what they reached, when")
    runs.add_argument(
        "folder", nargs="?", type=_folder, default=Path("runs"), metavar="DIR", help="default: runs"
    )

    text = "compare two runs client by client, and say what differs in their scenarios"
    compare = verb("compare", _compare, text)
    compare.add_argument("ours", type=_folder, metavar="A", help="run folder")
    compare.add_argument("theirs", type=_folder, metavar="B", help="run folder")

    text = "write a run's trained clients as safetensors, with a model card and a loader that needs no fedkd"
    export = verb("export", _export, text)
    export.add_argument("folder", type=_folder, metavar="DIR", help="run folder")
    export.add_argument(
        "--out", type=_folder, metavar="DIR", help="where to (default: export in the run folder)"
    )
    export.add_argument("--round", type=int, metavar="N", help="as after this round (default: the last)")

    text = "check a scenario without running it, and say what it would do; plug-ins are imported and called"
    check = verb("check", _check, text)
    _add_scenario(check)
    _add_no_plugins(check)
    text = "print the JSON schema of scenario files instead, or of bench files"
    check.add_argument("--schema", nargs="?", const="scenario", choices=("scenario", "bench"), help=text)

    listing = verb("list", _list, "list what a scenario can name")
    listing.add_argument("what", nargs="?", choices=LISTS, metavar="|".join(LISTS), help="default: all")

    text = "write a strategy, model or learner of your own to start from, with a scenario and a test"
    new = verb("new", _new, text)
    new.add_argument("kind", choices=("strategy", "model", "learner"))
    new.add_argument("name", metavar="NAME", help="name of the module, e.g. my_idea")
    new.add_argument("--out", type=_folder, default=Path(), metavar="DIR", help="where (default: here)")

    verb("doctor", _doctor, "show what is installed, which devices Ray sees, which data sets are found")
    return parser


def _folder(text: str) -> Path:
    if not text or "\0" in text:
        raise UserError(f"a folder has a name without NULs, got {text!r}")
    return Path(text)


def _add_scenario(parser: argparse.ArgumentParser, kind: Kind = "scenario") -> None:
    text = f"{kind} file, or the name of a shipped {kind}: fedkd list {LISTED[kind]}"
    parser.add_argument("scenario", nargs="?", metavar=f"{kind.upper()}.toml", help=text)
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="key=value",
        help="change values of the scenario, e.g. fusion.beta=2.0 clients.0.model=mlp",
    )


def _add_no_plugins(parser: argparse.ArgumentParser) -> None:
    text = "import and call nothing that is not fedkd's own; say what cannot be told without"
    parser.add_argument("--no-plugins", action="store_true", help=text)


def _add_quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def _scenario_words(args: argparse.Namespace, kind: Kind = "scenario") -> tuple[str, list[str]]:
    """Return the scenario file and the overrides; ``--set a=1 file.toml`` reads as it was meant."""
    words, file = list(args.set), args.scenario
    if file is None:
        known = names_of(kind)
        file = next((word for word in words if "=" not in word and word.endswith(".toml")), None)
        file = file or next((word for word in words if word in known), None)
        if file is None:
            raise UserError(
                f"no {kind} file given, nor a name such as quickstart (see: fedkd list {LISTED[kind]})"
            )
        words.remove(file)
    return str(find_shipped(file, kind)), words


@contextmanager
def _naming(file: str) -> Iterator[None]:
    """Put the scenario file's name before errors about its keys."""
    try:
        yield
    except UserError as error:
        in_file = error.key is not None and not error.key.startswith("--")
        raise error.at(file=file if in_file else None) from error
