"""A federation on one machine: a SuperLink and SuperNodes, over TLS on loopback.

Each node has a key of its own, a folder with its own samples, and a process for every message. All
processes end with the run, however it ends.

    DIR/nodes/         every participant's share (see `fedkd partition`), and the nodes' states of clients
        certificates/  see `fedkd.deployment.certificates`
        logs/          of the SuperLink, the nodes and the run
        .flower/       Flower's files of each process; empty at the start of a run
"""

import errno
import os
import re
import shutil
import socket
import ssl
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from fedkd.deployment.certificates import AUTHORITY, CERTIFICATE, KEY, make_certificates, public_key
from fedkd.deployment.children import Child, Children, Word
from fedkd.deployment.partition import SERVER, client_folder, write_app, write_partition
from fedkd.errors import RunFailed, UserError, one_line
from fedkd.federation import DATA_KEY, PARTITION_KEY, load_participant, with_loop_executor
from fedkd.plan import Plan
from fedkd.scenario import relocatable_digest
from fedkd.tracking import SCENARIO_FILE, TemporaryFolder

HOST = "127.0.0.1"
STARTUP = 120.0
"""Seconds that the SuperLink has to answer; a busy machine takes half of them."""
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
}
"""Flower sends no reports, installs nothing and does not look for updates."""
_COLOURS = re.compile("\x1b\\[[0-9;]*m")
_OF_FLOWER = re.compile(r"(INFO|DEBUG|WARNING|ERROR|CRITICAL)\s*:")
_ERROR = "error: "
_NOISE = ("Using SuperLink", "Successfully started run", "Successfully installed", "╭", "│", "╰")


@dataclass(frozen=True)
class Local:
    """A federation on this machine; `out` is the run folder.

    Attributes:
        folder: Folder of all other files, which the next run uses again; None: a temporary one.
        port: Port of the SuperLink; 0: a free one.
        wait: Seconds within which all nodes must join.
        reply_within: Seconds within which a node must reply; 0: Flower's limit.
    """

    plan: Plan
    out: Path
    folder: Path | None = None
    port: int = 0
    wait: float = 180.0
    reply_within: float = 0.0
    tell: Callable[[str], None] = print

    def run(self) -> None:
        """Start, run and stop; `UserError`: a wrong set-up; `RunFailed`: a failed run."""
        if (self.out / SCENARIO_FILE).exists():
            raise UserError(f"{self.out} holds a run already; choose another", key="OUT")
        port = _check_port(self.port) if self.port else 0
        with ExitStack() as stack:
            folder = self.folder
            if folder is None:
                folder = stack.enter_context(closing(TemporaryFolder("fedkd-federation-"))).path
            _Running(self, folder.absolute(), port).run()


class _Running:
    """One run of a federation; all files but the results go into a folder."""

    def __init__(self, local: Local, folder: Path, port: int) -> None:
        self._local, self._folder = local, folder
        self._clients = range(local.plan.scenario.data.clients)
        self._nodes, self._certificates = folder / "nodes", folder / "certificates"
        self._flower, self._authority = folder / ".flower", self._certificates / AUTHORITY
        free = _free_ports(1 + len(self._clients))
        self._port, self._node_ports = port or free[0], free[1:]
        self._failure: str | None = None
        self._wrong_input = False

    def run(self) -> None:
        tell = self._local.tell
        self._prepare()
        with Children(self._folder / "logs") as children:
            tell(f"SuperLink at {HOST}:{self._port}, TLS; {len(self._clients)} nodes, each with its own data")
            superlink = self._start_superlink(children)
            self._wait_for(superlink)
            for client in self._clients:
                self._start_node(children, client)
            status = self._start_run(children, superlink)
            self._tell_of_ended(children)
        if status or not (self._local.out / "summary.json").exists():
            if self._wrong_input and self._failure is not None:
                raise UserError(self._failure)
            raise RunFailed(self._failure or "the run did not finish" + self._where_logs())

    def _where_logs(self) -> str:
        kept = self._local.folder is not None
        return f"; see {self._folder / 'logs'}" if kept else "; --keep DIR keeps the logs"

    def _prepare(self) -> None:
        try:
            (self._folder / "logs").mkdir(parents=True, exist_ok=True)
            shutil.rmtree(self._flower, ignore_errors=True)
            write_app(self._flower / "app")
        except OSError as error:
            raise UserError(f"cannot write to {self._folder}: {error.strerror}", key="--keep") from error
        if not self._nodes.exists():
            write_partition(self._local.plan, self._nodes, self._local.tell)
        elif relocatable_digest(
            load_participant(str(self._nodes / SERVER)).plan.scenario
        ) != relocatable_digest(with_loop_executor(self._local.plan).scenario):
            raise UserError("has the data of another scenario; choose another folder", file=str(self._nodes))
        if not self._certificates.exists():
            make_certificates(self._certificates, clients=len(self._clients))
        _check_key(self._certificates)

    def _environment(self, name: str) -> dict[str, str]:
        """Return an environment in which a process finds its own files alone."""
        home, temporary = (self._flower / kind / name for kind in ("home", "tmp"))
        for folder in (home, temporary):
            folder.mkdir(parents=True, exist_ok=True)
        environment = {key: value for key, value in os.environ.items() if key != "FEDKD_DATA"}
        search = [str(Path(part).absolute()) for part in os.environ.get("PYTHONPATH", "").split(":") if part]
        own = {
            "FLWR_HOME": str(home),
            "TMPDIR": str(temporary),
            "XDG_CACHE_HOME": str(home / "cache"),
            "MPLCONFIGDIR": str(home / "matplotlib"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}",
            "PYTHONPATH": ":".join(search),
        }
        return environment | QUIET | own

    def _start_superlink(self, children: Children) -> Child:
        environment = self._environment("superlink")
        command: list[Word] = [
            *("flower-superlink", "--host", HOST, "--port", self._port),
            *("--ssl-ca-certfile", self._authority),
            *("--ssl-certfile", self._certificates / CERTIFICATE),
            *("--ssl-keyfile", self._certificates / KEY),
            *("--database", self._flower / "state.db"),
            "--enable-supernode-auth",
        ]
        return children.start("SuperLink", command, environment, self._folder)

    def _start_node(self, children: Children, client: int) -> Child:
        name, own = f"node {client}", client_folder(client)
        private = self._certificates / own
        if not private.is_file():
            raise UserError(f"has no key of client {client}", file=str(self._certificates))
        register: list[Word] = ["flwr", "supernode", "register", public_key(private)]
        said: list[str] = []
        if children.run(register, self._environment("user"), self._folder, said.append):
            raise RunFailed(f"{name}: {one_line(' '.join(said))}")
        config = self._flower / f"{own}.toml"
        config.write_text(
            tomli_w.dumps({PARTITION_KEY: client, DATA_KEY: str(self._nodes / own)}), encoding="utf-8"
        )
        command: list[Word] = [
            *("flower-supernode", "--superlink", f"{HOST}:{self._port}"),
            *("--root-certificates", self._authority),
            *("--auth-supernode-private-key", private),
            *("--host", HOST, "--port", self._node_ports[client]),
            *("--node-config", config),
        ]
        return children.start(name, command, self._environment(own), self._folder)

    def _start_run(self, children: Children, superlink: Child) -> int:
        config = {DATA_KEY: str(self._nodes / SERVER), "out": str(self._local.out.absolute())}
        waits = {"wait": self._local.wait, "reply-within": self._local.reply_within}
        path = self._flower / "run.toml"
        path.write_text(tomli_w.dumps(config | waits), encoding="utf-8")
        command: list[Word] = ["flwr", "run", self._flower / "app", "--stream", "--run-config", path]
        with (self._folder / "logs" / "run.log").open("a", encoding="utf-8") as log:

            def each(line: str) -> None:
                print(line, file=log, flush=True)
                self._heard(line)

            def meanwhile() -> None:
                self._tell_of_ended(children)
                if superlink.ended:
                    raise RunFailed(f"the SuperLink {superlink.how}, which ends the run")

            return children.run(command, self._environment("user"), self._folder, each, meanwhile)

    def _tell_of_ended(self, children: Children) -> None:
        for child in children.newly_ended():
            self._local.tell(f"warning: {child.name} {child.how}; end of its log: {_last_words(child.log)}")

    def _heard(self, line: str) -> None:
        """Report a line of the server, except Flower's lines and tracebacks of reported errors."""
        plain = _COLOURS.sub("", line).strip()
        if self._failure is not None:
            self._wrong_input = self._wrong_input or plain.startswith("fedkd.errors.UserError")
        elif plain.startswith(_ERROR):
            self._failure = plain.removeprefix(_ERROR)
        elif plain and not _OF_FLOWER.match(plain) and not plain.startswith(_NOISE):
            self._local.tell(line)

    def _wait_for(self, superlink: Child) -> None:
        """Wait for a SuperLink with a trusted certificate, and configure `flwr` to find it."""
        try:
            trust = ssl.create_default_context(cafile=str(self._authority))
        except (OSError, ssl.SSLError) as error:
            raise UserError(f"is not a valid certificate: {error}", file=str(self._authority)) from None
        deadline = time.monotonic() + STARTUP
        while True:
            try:
                with (
                    socket.create_connection((HOST, self._port), timeout=5.0) as plain,
                    trust.wrap_socket(plain, server_hostname=HOST),
                ):
                    break
            except ssl.SSLCertVerificationError as error:
                raise UserError(
                    f"nodes would reject the SuperLink's certificate: {error.verify_message}",
                    file=str(self._certificates / CERTIFICATE),
                ) from None
            except OSError:
                pass
            if superlink.ended:
                raise RunFailed(f"the SuperLink {superlink.how}: {_last_words(superlink.log)}")
            if time.monotonic() > deadline:
                raise RunFailed(f"the SuperLink does not answer within {STARTUP:g} s{self._where_logs()}")
            time.sleep(0.2)
        connection = {"address": f"{HOST}:{self._port}", "root-certificates": str(self._authority)}
        home = Path(self._environment("user")["FLWR_HOME"])
        text = tomli_w.dumps({"superlink": {"default": "local", "local": connection}})
        (home / "config.toml").write_text(text, encoding="utf-8")


def _check_key(certificates: Path) -> None:
    for name in (AUTHORITY, CERTIFICATE, KEY):
        if not (certificates / name).is_file():
            raise UserError(f"has no {name}", file=str(certificates))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificates / CERTIFICATE, certificates / KEY)
    except (OSError, ssl.SSLError) as error:
        raise UserError(
            f"does not match {KEY}, or one of the two is damaged: {error}",
            file=str(certificates / CERTIFICATE),
        ) from None


def _check_port(port: int) -> int:
    if not 0 < port < 65536:
        raise UserError(f"must be in 1..65535, got {port}", key="--port")
    try:
        socket.create_server((HOST, port)).close()
    except OSError as error:
        reason = "another process listens there" if error.errno == errno.EADDRINUSE else error.strerror
        raise UserError(
            f"{HOST}:{port}: {reason}; choose another port, or leave it out for a free one", key="--port"
        ) from None
    return port


def _free_ports(count: int) -> list[int]:
    with ExitStack() as held:  # all at once, so that they differ
        servers = [held.enter_context(socket.create_server((HOST, 0))) for _ in range(count)]
        return [server.getsockname()[1] for server in servers]


def _last_words(log: Path) -> str:
    """Return the last line of a log, an error before all others."""
    text = log.read_text(errors="replace") if log.is_file() else ""
    lines = [line for line in (_COLOURS.sub("", line).strip() for line in text.splitlines()) if line]
    errors = [line for line in lines if "error" in line.lower()]
    return one_line((errors or lines or ["an empty log"])[-1])
