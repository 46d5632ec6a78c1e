"""A lab's own certificate authority, and what it issues to its hosts.

The authority lives as long as the lab's directory. Hosts get new certificates at every start, which
takes a millisecond each: they always bear the right addresses and are never stale.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_AUTHORITY_DAYS = 3650
_HOST_DAYS = 365
_BACKDATED = datetime.timedelta(days=1)

_ALL_LIBVIRT = ("libvirt/servercert.pem", "libvirt/clientcert.pem")
_ALL_LIBVIRT_KEYS = ("libvirt/private/serverkey.pem", "libvirt/private/clientkey.pem")
_ALL_QEMU = ("qemu/server-cert.pem", "qemu/client-cert.pem")
_ALL_QEMU_KEYS = ("qemu/server-key.pem", "qemu/client-key.pem")

AUTHORITIES = ("CA/cacert.pem", "qemu/ca-cert.pem")
"""Where libvirt and QEMU look for the authority, below /etc/pki."""
CERTIFICATES = (*_ALL_LIBVIRT, *_ALL_QEMU)
KEYS = (*_ALL_LIBVIRT_KEYS, *_ALL_QEMU_KEYS)


@dataclass(frozen=True)
class Authority:
    """A certificate authority with its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def make(cls, name: str) -> Authority:
        """Make a new one."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = _key_usage(signs_certificates=True)
        builder = (
            _begin(subject, subject, key, _AUTHORITY_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
        )
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def ensure(cls, directory: Path, name: str) -> Authority:
        """Read the one that a directory holds, or make it there."""
        certificate, key = directory / "ca-cert.pem", directory / "ca-key.pem"
        if certificate.exists() and key.exists():
            loaded = serialization.load_pem_private_key(key.read_bytes(), password=None)
            if isinstance(loaded, ec.EllipticCurvePrivateKey):
                return cls(x509.load_pem_x509_certificate(certificate.read_bytes()), loaded)
        directory.mkdir(parents=True, exist_ok=True)
        made = cls.make(name)
        _write(key, _key_pem(made.key), mode=0o600)
        _write(certificate, made.pem)
        return made

    @property
    def pem(self) -> bytes:
        """The certificate, as libvirt and QEMU read it."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(
        self, host: str, address: str, *, not_after: datetime.datetime | None = None
    ) -> tuple[bytes, bytes]:
        """Issue a certificate that serves and asks, and return it with its key, both as PEM.

        Args:
            host: its name.
            address: its IP address, under which other hosts reach it.
            not_after: its end; None for a year from now.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        names = [x509.DNSName(host), x509.IPAddress(ipaddress.ip_address(address))]
        uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        usage = _key_usage(signs_certificates=False)
        builder = (
            _begin(subject, self.certificate.subject, key, _HOST_DAYS, not_after)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        )
        signed = builder.sign(self.key, hashes.SHA256())
        return signed.public_bytes(serialization.Encoding.PEM), _key_pem(key)


def equip(directory: Path, authority: Authority, host: str, address: str) -> None:
    """Fill a host's /etc/pki for libvirtd and QEMU, as server and as client."""
    certificate, key = authority.issue(host, address)
    for name in AUTHORITIES:
        _write(directory / name, authority.pem)
    for name in CERTIFICATES:
        _write(directory / name, certificate)
    for name in KEYS:
        _write(directory / name, key, mode=0o600)


def _begin(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    days: int,
    not_after: datetime.datetime | None = None,
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    end = not_after or now + datetime.timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, end) - _BACKDATED)
        .not_valid_after(end)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        # libvirt and QEMU insist on it, whatever the kind of key.
        key_encipherment=not signs_certificates,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _write(path: Path, content: bytes, *, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(content)
