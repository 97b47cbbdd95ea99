"""Certificates and keys of a federation, for trials and for federations without an issuer.

    ca.crt         the authority that nodes and users trust
    superlink.crt  the SuperLink's certificate; superlink.key: its private key
    client-0       the private key of a registered node; client-0.pub

The authority's private key is discarded after signing: no other certificate can become trusted.

    python -m fedkd.deployment.certificates DIR --host NAME_OR_ADDRESS … --clients N
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from fedkd.deployment.partition import client_folder
from fedkd.errors import FedkdError, UserError
from fedkd.plugins import require_package

with suppress(ImportError):  # of an extra that `make_certificates` names
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
    )
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY, CERTIFICATE, KEY = "ca.crt", "superlink.crt", "superlink.key"
LOOPBACK = ("127.0.0.1", "localhost")
DAYS = 365
CLOCKS_DIFFER = timedelta(hours=1)
"""Start of a certificate's validity before now, for nodes whose clock is behind."""


def make_certificates(
    folder: Path, hosts: Sequence[str] = LOOPBACK, *, clients: int = 0, days: int = DAYS
) -> None:
    """Write an authority's and the SuperLink's certificates, and a pair of keys for every client.

    `hosts` are the SuperLink's names and addresses.

    Raises:
        UserError: The folder has certificates or cannot be written, a host is missing or malformed, or the
            package cryptography is missing.
    """
    require_package("cryptography", "a certificate", "deployment")
    if not hosts:
        raise UserError("must have at least one name or address of the SuperLink", key="--host")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / AUTHORITY).exists():
            raise UserError(f"{folder} has certificates already; choose another folder")
        _write_superlink(folder, hosts, days)
        for client in range(clients):
            _write_pair(folder / client_folder(client))
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from error


def _write_superlink(folder: Path, hosts: Sequence[str], days: int) -> None:
    now = datetime.now(UTC)
    authority, own = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = _name("fedkd federation")

    def certificate(subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - CLOCKS_DIFFER)
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False
            )
        )

    root = (
        certificate(issuer, authority)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .sign(authority, hashes.SHA256())
    )
    shown = (
        certificate(_name("SuperLink"), own)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
        .sign(authority, hashes.SHA256())
    )
    _write_private(folder / KEY, own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    (folder / CERTIFICATE).write_bytes(shown.public_bytes(Encoding.PEM))
    (folder / AUTHORITY).write_bytes(root.public_bytes(Encoding.PEM))


def _write_pair(path: Path) -> None:
    """Write a node's keys in Flower's format: curve P-384, OpenSSH."""
    key = ec.generate_private_key(ec.SECP384R1())
    _write_private(path, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    public_key(path).write_bytes(public + b"\n")


def public_key(private: Path) -> Path:
    return private.with_name(f"{private.name}.pub")


def _write_private(path: Path, content: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _host(host: str) -> x509.GeneralName:
    with suppress(ValueError):
        return x509.IPAddress(ipaddress.ip_address(host))
    with suppress(ValueError):  # letters that a name cannot have
        if host:
            return x509.DNSName(host)
    raise UserError(f"must be a machine's name or address, got {host!r}", key="--host")


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    others = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        **dict.fromkeys((*others, "encipher_only", "decipher_only"), False),
    )


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m fedkd.deployment.certificates", allow_abbrev=False)
    parser.add_argument("folder", type=Path, metavar="DIR", help="where to")
    parser.add_argument("--host", nargs="+", default=list(LOOPBACK), help="names of the SuperLink")
    parser.add_argument("--clients", type=int, default=0, metavar="N", help="number of clients that get keys")
    parser.add_argument("--days", type=int, default=DAYS, metavar="N", help="days of validity")
    args = parser.parse_args(words)
    try:
        make_certificates(args.folder, args.host, clients=args.clients, days=args.days)
    except FedkdError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main())
