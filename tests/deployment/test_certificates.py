"""Certificates and keys of nodes and their SuperLink."""

from __future__ import annotations

import ssl
import stat
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from fedkd.deployment.certificates import AUTHORITY, CERTIFICATE, KEY, main, make_certificates
from fedkd.deployment.local import _check_key, _check_port, _last_words
from fedkd.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("certificates") / "own"
    make_certificates(path, ["127.0.0.1", "superlink.example.org"], clients=2)
    return path


def shake_hands(server: Path, authority: Path, host: str) -> None:
    """Let a node that trusts an authority meet a SuperLink under a name, without a socket."""
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(server / CERTIFICATE, server / KEY)
    to_server, to_node = ssl.MemoryBIO(), ssl.MemoryBIO()
    node = ssl.create_default_context(cafile=str(authority)).wrap_bio(
        to_node, to_server, server_hostname=host
    )
    superlink = theirs.wrap_bio(to_server, to_node, server_side=True)
    for side in (node, superlink, node, superlink):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue


@pytest.mark.parametrize("host", ["127.0.0.1", "superlink.example.org"])
def test_a_node_trusts_its_superlink_under_the_given_names(folder, host):
    shake_hands(folder, folder / AUTHORITY, host)


def test_a_node_rejects_foreign_certificates(folder, tmp_path):
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shake_hands(folder, folder / AUTHORITY, "another.example.org")
    make_certificates(tmp_path / "other", ["127.0.0.1"])
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        shake_hands(tmp_path / "other", folder / AUTHORITY, "127.0.0.1")


def test_key_pairs_match_and_differ_by_node(folder):
    public = []
    for client in range(2):
        private = load_ssh_private_key((folder / f"client-{client}").read_bytes(), None)
        known = load_ssh_public_key((folder / f"client-{client}.pub").read_bytes())
        assert isinstance(private, ec.EllipticCurvePrivateKey) and private.curve.name == "secp384r1"
        assert private.public_key() == known
        public.append(known)
    assert public[0] != public[1]
    for secret in (KEY, "client-0", "client-1"):
        assert stat.S_IMODE((folder / secret).stat().st_mode) == 0o600, "readable by its owner alone"
    names = {AUTHORITY, CERTIFICATE, KEY, *(f"client-{n}{end}" for n in range(2) for end in ("", ".pub"))}
    assert {path.name for path in folder.iterdir()} == names, "the authority's own key is nowhere"


def test_existing_certificates_are_not_replaced(folder, capsys):
    before = (folder / CERTIFICATE).read_bytes()
    assert main([str(folder)]) == 2
    assert capsys.readouterr().err == f"error: {folder} has certificates already; choose another folder\n"
    assert (folder / CERTIFICATE).read_bytes() == before


@pytest.mark.parametrize("host", ["", "müller.example.org"])
def test_invalid_host_names_are_refused(tmp_path, host):
    with pytest.raises(UserError, match="--host: must be a machine's name or address"):
        make_certificates(tmp_path, [host])
    assert not list(tmp_path.iterdir())


def test_without_cryptography_the_extra_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "cryptography", None)
    assert main([str(tmp_path / "own")]) == 2 and not (tmp_path / "own").exists()
    install = "in a clone of fedkd: pip install '.[deployment]'"
    assert capsys.readouterr().err == f"error: a certificate needs cryptography; {install}\n"


# What is checked before anything is started ---------------------------------------------------------------


def test_unusable_certificates_give_one_line(folder, tmp_path):
    own = tmp_path / "own"
    make_certificates(own)
    _check_key(own)
    (own / KEY).write_bytes((folder / KEY).read_bytes())
    with pytest.raises(UserError, match=r"superlink\.crt: does not match superlink\.key"):
        _check_key(own)
    (own / CERTIFICATE).unlink()
    with pytest.raises(UserError, match=r"own: has no superlink\.crt"):
        _check_key(own)


def test_a_port_in_use_gives_one_line():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"--port: 127.0.0.1:{port}: another process listens there"):
            _check_port(port)
    assert _check_port(port) == port
    with pytest.raises(UserError, match=r"--port: must be in 1\.\.65535, got 70000"):
        _check_port(70000)


def test_the_error_in_a_log_is_reported(tmp_path):
    log = tmp_path / "node.log"
    log.write_text("\x1b[92mINFO \x1b[0m: start\n\x1b[91mERROR \x1b[0m: no such key\nINFO: bye\n\n")
    assert _last_words(log) == "ERROR : no such key"
    assert _last_words(tmp_path / "none.log") == "an empty log"
