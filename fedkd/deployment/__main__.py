"""`python -m fedkd.deployment`: a federation on this machine; see `scripts/federation.sh`."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from fedkd.engine import ignore_closed_terminal, signals_as_interrupts
from fedkd.errors import FedkdError, UserError, one_line

INTERRUPTED = 130


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/federation.sh",
        description="Run a scenario on a SuperLink and SuperNodes, all on this machine.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "scenario", metavar="SCENARIO.toml", help="scenario file, or the name of a shipped one"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="run folder")
    parser.add_argument("set", nargs="*", metavar="key=value", help="change values of the scenario")
    text = "keep shares, nodes' states, certificates and logs here; existing shares and states are used"
    parser.add_argument("--keep", type=Path, metavar="DIR", help=text)
    parser.add_argument(
        "--port", type=int, default=0, metavar="N", help="port of the SuperLink (default: a free one)"
    )
    text = "seconds within which all nodes must join (default: 180)"
    parser.add_argument("--wait", type=float, default=180.0, metavar="S", help=text)
    text = "seconds within which a node must reply (default: as long as Flower keeps a message)"
    parser.add_argument("--reply-within", type=float, default=0.0, metavar="S", help=text)
    args = parser.parse_args(words)
    try:
        with ignore_closed_terminal(), signals_as_interrupts():
            _run(args)
        return 0
    except FedkdError as error:
        print("error:", one_line(str(error)), file=sys.stderr, flush=True)
        return error.exit_status
    except KeyboardInterrupt:
        print("error: interrupted; all processes of the federation are stopped", file=sys.stderr, flush=True)
        return INTERRUPTED


def _run(args: argparse.Namespace) -> None:
    from fedkd.deployment.local import Local
    from fedkd.deployment.partition import check_deployable
    from fedkd.plan import load_plan

    plan = load_plan(args.scenario, args.set)
    try:
        check_deployable(plan)
    except UserError as error:
        raise error.at(file=args.scenario) from None
    tell = partial(print, flush=True)
    Local(plan, args.out, args.keep, args.port, args.wait, args.reply_within, tell).run()


if __name__ == "__main__":
    sys.exit(main())
