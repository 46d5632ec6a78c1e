"""The certificates of libvirtd and QEMU on this host, judged before a migration depends on them.

Libvirt's own word on a bad certificate comes late, names no file and stands in a log of the other
host. What is looked at here is what GnuTLS looks at: dates, names, uses, signatures, keys.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Literal

# Loaded with the first migration that asks for TLS: a worker must start fast.
if TYPE_CHECKING:
    from cryptography.x509 import Certificate

Role = Literal["server", "client"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificatePlaces:
    """Where the host's certificates are.

    Args:
        libvirt: directory with ``CA/`` and ``libvirt/``, as libvirt is built to look for them.
        qemu: directory of QEMU's, ``migrate_tls_x509_cert_dir`` of qemu.conf.
    """

    libvirt: Path = Path("/etc/pki")
    qemu: Path = Path("/etc/pki/qemu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What one program shows to its peer, and by which authority it judges the peer."""

    program: Literal["libvirt", "QEMU"]
    role: Role
    authority: Path
    certificate: Path
    key: Path

    @property
    def name(self) -> str:
        """Key of this identity in records: the program."""
        return self.program.lower()


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, as the rest of a sentence that begins with the host, and the remedy."""

    message: str
    hint: str


def list_identities(places: CertificatePlaces, role: Role) -> tuple[Identity, Identity]:
    """Return libvirt's and QEMU's identity as server (destination) or client (source)."""
    libvirt, qemu = places.libvirt / "libvirt", places.qemu
    return (
        Identity(
            program="libvirt",
            role=role,
            authority=places.libvirt / "CA" / "cacert.pem",
            certificate=libvirt / f"{role}cert.pem",
            key=libvirt / "private" / f"{role}key.pem",
        ),
        Identity(
            program="QEMU",
            role=role,
            authority=qemu / "ca-cert.pem",
            certificate=qemu / f"{role}-cert.pem",
            key=qemu / f"{role}-key.pem",
        ),
    )


def list_problems(
    identity: Identity, *, name: str | None = None, now: datetime | None = None
) -> list[Problem]:
    """Look for whatever a peer would refuse, or what would keep the program from starting.

    Args:
        identity: whose files.
        name: the name or address under which the peer calls; None when it is not looked at.
        now: the time; None for the clock's.
    """
    moment = now or datetime.now(UTC)
    authorities, problems = _load(identity.authority)
    chain, more = _load(identity.certificate)
    problems += more
    for path, certificates in (
        (identity.authority, authorities),
        (identity.certificate, chain[:1]),
    ):
        problems += [p for c in certificates if (p := _find_wrong_date(path, c, moment))]
    if not chain:
        return problems + _list_key_problems(identity, None)
    leaf = chain[0]
    if authorities and not _is_signed(chain, authorities):
        problems.append(
            Problem(
                f"{identity.certificate} is not signed by the authority in {identity.authority}",
                "Put a certificate there that this authority has issued, or its authority here.",
            )
        )
    bears = list_names(leaf)
    if name is not None and not any(_fits(one, name) for one in bears):
        problems.append(
            Problem(
                f"{identity.certificate} is made out to {', '.join(bears) or 'nobody'}, "
                f"not to {name}",
                f"Issue it with {name} among its subject alternative names: as an IP address if "
                "it is one, else as a DNS name.",
            )
        )
    problems += _list_wrong_uses(identity, leaf)
    return problems + _list_key_problems(identity, leaf)


def find_distrust(identity: Identity, shown_pem: str, *, of: str) -> Problem | None:
    """Return why the authority here does not vouch for a peer's certificate; None if it does.

    Args:
        identity: who judges.
        shown_pem: what the peer shows.
        of: the peer, for the message.
    """
    from cryptography import x509

    authorities, problems = _load(identity.authority)
    if problems:
        return problems[0]
    chain = x509.load_pem_x509_certificates(shown_pem.encode())
    if _is_signed(chain, authorities):
        return None
    return Problem(
        f"{identity.authority} does not vouch for the certificate that {identity.program} of "
        f"{of} shows",
        "Both hosts need certificates of one authority, or each the other's authority in that "
        "file as well.",
    )


def find_foreign_authority(identity: Identity, authority_pem: str, *, of: str) -> Problem | None:
    """Return why a peer's authority does not vouch for this identity; None if it does.

    Args:
        identity: who is judged.
        authority_pem: by what the peer judges.
        of: the peer, for the message.
    """
    from cryptography import x509

    chain, problems = _load(identity.certificate)
    if problems:
        return problems[0]
    if _is_signed(chain, x509.load_pem_x509_certificates(authority_pem.encode())):
        return None
    return Problem(
        f"{identity.certificate} is not signed by the authority that {identity.program} of {of} "
        "trusts",
        "Both hosts need certificates of one authority, or each the other's authority as well.",
    )


def read_shown(identity: Identity) -> dict[str, str]:
    """Return what is public of an identity without problems, for the peer to judge."""
    return {
        "authority": identity.authority.read_text(),
        "certificate": identity.certificate.read_text(),
    }


def list_names(certificate: "Certificate") -> list[str]:
    """Return the names and addresses that a certificate is made out to."""
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return [str(attribute.value) for attribute in found]
    names = extension.value
    addresses = names.get_values_for_type(x509.IPAddress)
    return [*names.get_values_for_type(x509.DNSName), *(str(address) for address in addresses)]


def _fits(pattern: str, name: str) -> bool:
    """Return whether a name in a certificate is this name; a star stands for the first label."""
    pattern, name = pattern.lower(), name.lower()
    if pattern == name:
        return True
    star, _, domain = pattern.partition(".")
    return star == "*" and not is_address(name) and name.partition(".")[2] == domain != ""


def is_address(name: str) -> bool:
    """Return whether a name is an IP address."""
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _load(path: Path) -> tuple[list["Certificate"], list[Problem]]:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(path.read_bytes()), []
    except OSError as error:
        reason = error.strerror or str(error)
        return [], [Problem(f"{path} cannot be read: {reason}", f"Put the certificate at {path}.")]
    except ValueError:
        hint = f"Put a certificate in PEM form at {path}."
        return [], [Problem(f"{path} holds no certificate", hint)]


def _find_wrong_date(path: Path, certificate: "Certificate", now: datetime) -> Problem | None:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > end:
        return Problem(f"{path} expired on {end:%Y-%m-%d %H:%M} UTC", "Issue a new one.")
    if now < begin:
        return Problem(
            f"{path} is valid only from {begin:%Y-%m-%d %H:%M} UTC",
            "Compare the host's clock, or issue a new one.",
        )
    return None


def _is_signed(chain: Iterable["Certificate"], authorities: Iterable["Certificate"]) -> bool:
    """Follow the signatures from the first certificate to one of the authorities."""
    authorities = list(authorities)
    current, *intermediates = chain
    for _ in range(len(intermediates) + 1):
        if any(_signed_by(current, authority) for authority in authorities):
            return True
        above = next((c for c in intermediates if _signed_by(current, c)), None)
        if above is None:
            return False
        current = above
    return False


def _signed_by(certificate: "Certificate", issuer: "Certificate") -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _list_wrong_uses(identity: Identity, leaf: "Certificate") -> list[Problem]:
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    missing = []
    try:
        usage = leaf.extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        pass
    else:
        if not usage.digital_signature:
            missing.append("digital signature")
        if not usage.key_encipherment:
            missing.append("key encipherment")
    oid = {
        "server": ExtendedKeyUsageOID.SERVER_AUTH,
        "client": ExtendedKeyUsageOID.CLIENT_AUTH,
    }[identity.role]
    try:
        uses = list(leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        uses = [oid]
    if oid not in uses and ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE not in uses:
        missing.append(f"TLS {identity.role}")
    if not missing:
        return []
    lacks = " and ".join(missing)
    return [
        Problem(
            f"{identity.certificate} may not be used for {lacks}",
            f"Issue it with the use {lacks}; libvirt and QEMU insist on it.",
        )
    ]


def _list_key_problems(identity: Identity, leaf: "Certificate | None") -> list[Problem]:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        text = identity.key.read_bytes()
    except PermissionError:
        # The worker may run as another user than libvirt, and then need not read keys.
        return []
    except OSError as error:
        reason = error.strerror or str(error)
        return [
            Problem(f"{identity.key} cannot be read: {reason}", f"Put the key at {identity.key}.")
        ]
    try:
        key = load_pem_private_key(text, password=None)
    except (ValueError, TypeError):
        hint = f"Put the key in PEM form, without a password, at {identity.key}."
        return [Problem(f"{identity.key} holds no usable key", hint)]
    if leaf is not None and key.public_key() != leaf.public_key():
        return [
            Problem(
                f"{identity.key} is not the key of {identity.certificate}",
                "Put the certificate and the key there that were made together.",
            )
        ]
    return []
