"""The verbs of the command line."""

import argparse
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from fedkd.engine import check_address_space
from fedkd.errors import RunFailed, UserError, refuse_if
from fedkd.scenario import KIND_PLURALS, ShippedKind, find_shipped, shipped_names

LISTS = (
    *("strategies", "models", "learners", "datasets", "partitions", "metrics", "loggers"),
    *KIND_PLURALS.values(),
)


def run_verb(args: argparse.Namespace) -> None:
    check_address_space()
    from fedkd.plan import load_plan

    path, overrides = _scenario_words(args)
    if args.engine:
        overrides.append(f"engine.kind={args.engine}")
    plan = load_plan(path, overrides, seed=args.seed)
    _supervise(args, lambda: plan.scenario.engine.kind == "ray")
    # These imports take a second: they come after the scenario is checked.
    from fedkd.simulation import run
    from fedkd.tracking import make_progress

    with _naming(path):
        run(plan, out=args.out, observers=[make_progress(quiet=args.quiet)], progress=False)


def resume_verb(args: argparse.Namespace) -> None:
    check_address_space()
    from fedkd.tracking import read_run_plan

    _supervise(args, lambda: read_run_plan(args.folder).scenario.engine.kind == "ray")
    from fedkd.simulation import resume
    from fedkd.tracking import make_progress

    shown = [make_progress(quiet=args.quiet)]
    resume(args.folder, rounds=args.rounds, observers=shown, progress=False)


def bench_verb(args: argparse.Namespace) -> None:
    check_address_space()
    from fedkd.benchmark import bench, describe_plan, load_bench, plan_bench

    path, overrides = _scenario_words(args, "bench")
    if args.dry_run:
        _print(describe_plan(plan_bench(path, overrides, args.out, plug_ins=not args.no_plugins)))
        return
    refuse_if(args.no_plugins, "needs --dry-run: cells cannot run without their plug-ins", "--no-plugins")
    _supervise(args, lambda: load_bench(path, overrides).spec.parallel)
    result = bench(path, out=args.out, overrides=overrides, quiet=args.quiet)
    if not args.quiet:
        print(f"\n{result.table()}\nresults  {result.folder}")
    if result.failed:
        told = f"{len(result.failed)} of {len(result.cells)} cells failed, see {result.folder / 'cells.csv'};"
        raise RunFailed(f"{told} the same command retries them")


def tune_verb(args: argparse.Namespace) -> None:
    check_address_space()
    from fedkd.tuning import MAX_TABLE_TRIALS, describe_tune, load_search, plan_tune, tune

    if args.scenario is None:  # accept `--search a=0..1 file.toml`
        args.scenario = next((word for word in args.search if "=" not in word), None)
        args.search = [word for word in args.search if word != args.scenario]
    path, overrides = _scenario_words(args)
    overrides += [f"trials={args.trials}"] if args.trials is not None else []
    overrides += [f'metric="{args.metric}"'] if args.metric is not None else []
    if args.dry_run:
        _print(describe_tune(plan_tune(path, overrides, args.search, args.out)))
        return
    _supervise(args, lambda: load_search(path, overrides, args.search).spec.parallel)
    result = tune(path, search=args.search, out=args.out, overrides=overrides, quiet=args.quiet)
    if not args.quiet:
        print(f"\n{result.table(MAX_TABLE_TRIALS)}\nresults  {result.folder}\nfound    {result.scenario}")


def report_verb(args: argparse.Namespace) -> None:
    from fedkd.benchmark import partial_study
    from fedkd.report import write_report

    study = partial_study(args.folders[0]) if len(args.folders) == 1 else None
    print(f"report  {write_report(args.folders, args.out, study)}")


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, flush=True)


def _supervise(args: argparse.Namespace, on_ray: Callable[[], bool]) -> None:
    if args.supervised and on_ray():
        from fedkd.engine import run_in_child

        run_in_child()


def watch_verb(args: argparse.Namespace) -> None:
    from fedkd.cli.watch import watch

    watch(args.folder, once=args.once)


def runs_verb(args: argparse.Namespace) -> None:
    from fedkd.simulation import runs

    _print(runs(args.folder).lines())


def compare_verb(args: argparse.Namespace) -> None:
    from fedkd.simulation import compare

    _print(compare(args.ours, args.theirs).lines())


def export_verb(args: argparse.Namespace) -> None:
    check_address_space()
    from fedkd.trained import export

    made = export(args.folder, args.out, round=args.round, progress=lambda line: print(line, flush=True))
    for index, why in made.left_out.items():
        print(f"client {index} is left out: {why}")
    for index in made.without_network:
        print(f"client {index}: its network could not be described; pass the network to load.py")
    print(f"{len(made.clients)} clients  {made.folder}")


def audit_verb(args: argparse.Namespace) -> None:
    check_address_space()
    from fedkd.auditing import audit

    tell = None if args.quiet else lambda line: print(line, flush=True)
    result = audit(
        args.folder,
        round=args.round,
        samples=args.samples,
        delta=args.delta,
        seed=args.seed,
        progress=tell,
    )
    _print(["", *result.lines(), f"results  {result.folder / 'audit.json'}"])


def partition_verb(args: argparse.Namespace) -> None:
    check_address_space()
    from fedkd.deployment import write_partition
    from fedkd.plan import load_plan

    path, overrides = _scenario_words(args)
    plan = load_plan(path, overrides)
    with _naming(path):
        made = write_partition(plan, args.out, lambda line: print(line, flush=True))
    print(f"{plan.scenario.data.clients} clients and the server  {made}")


def check_verb(args: argparse.Namespace) -> None:
    if args.schema:
        import json

        if args.schema == "bench":
            from fedkd.benchmark import bench_json_schema as schema
        elif args.schema == "search":
            from fedkd.tuning import search_json_schema as schema
        else:
            from fedkd.plan import json_schema as schema
        print(json.dumps(schema(), indent=2, ensure_ascii=False))
        return
    from fedkd.plan import WithoutPlugins, load_plan, load_without_plugins
    from fedkd.simulation import check_plan, check_without_plugins

    path, overrides = _scenario_words(args)
    plan = (load_without_plugins if args.no_plugins else load_plan)(path, overrides)
    with _naming(path):
        _print(
            check_without_plugins(plan, print)
            if isinstance(plan, WithoutPlugins)
            else check_plan(plan, print)
        )
    print("ok")


def list_verb(args: argparse.Namespace) -> None:
    from fedkd.cli import catalogue

    if args.name is not None:
        _print(catalogue.details(args.what, args.name))
        return
    chosen = [args.what] if args.what else LISTS
    for position, what in enumerate(chosen):
        if len(chosen) > 1:
            print(f"{chr(10) * (position > 0)}{what}")
        _print(f"  {line}" if len(chosen) > 1 else line for line in getattr(catalogue, what)())


def new_verb(args: argparse.Namespace) -> None:
    from fedkd.scaffold import new, new_scenario

    if args.kind == "scenario":
        refuse_if(args.table is None, "a scenario needs the file of a table: --from FILE", "--from")
        _print(new_scenario(args.table, args.name, args.out))
        return
    refuse_if(args.table is not None, "only with: fedkd new scenario", "--from")
    refuse_if(args.name is None, f"a {args.kind} needs a name (see fedkd new --help)", "NAME")
    _print(new(args.kind, args.name, args.out))


def doctor_verb(args: argparse.Namespace) -> None:
    from fedkd.cli.doctor import examine

    _print(examine())


def _scenario_words(args: argparse.Namespace, kind: ShippedKind = "scenario") -> tuple[str, list[str]]:
    """Return the scenario file and the overrides; accept ``--set a=1 file.toml``."""
    words, file = list(args.set), args.scenario
    if file is None:
        files = [word for word in words if "=" not in word and word.endswith(".toml")]
        known = shipped_names(kind)
        file = next(iter([*files, *(word for word in words if word in known)]), None)
        if file is None:
            listing = f"fedkd list {KIND_PLURALS[kind]}"
            raise UserError(f"give a {kind} file, or a name such as quickstart (see: {listing})")
        words.remove(file)
    return str(find_shipped(file, kind)), words


@contextmanager
def _naming(file: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        in_file = error.key is not None and not error.key.startswith("--")
        raise error.at(file=file if in_file else None) from error
