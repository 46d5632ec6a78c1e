"""TLS of a live migration: what each host says of its certificates, and how the hosts connect."""

from collections.abc import Mapping
from typing import Any

from innkeeper.errors import InvalidRequest
from innkeeper.types import MigrationPolicy
from tasks.context import HostServices, StepContext
from tasks.tls_rule import TlsRule, decide_tls
from virt.tls_certificates import (
    Problem,
    find_distrust,
    find_foreign_authority,
    list_identities,
    list_problems,
    read_shown,
)
from virt.tls_probe import probe_libvirt_tls

LIBVIRT_TCP_PORT = 16509
LIBVIRT_TLS_PORT = 16514
HANDSHAKE_TIMEOUT_S = 3.0

Failure = dict[str, Any]


def look_on_destination(host: HostServices, policy: MigrationPolicy) -> dict[str, Any]:
    """Look at the destination's certificates, for the source to judge them; empty without TLS.

    Args:
        host: the destination's parts.
        policy: the migration's.

    Returns:
        ``failures``, and in ``shown`` for each program what its peer will be shown.
    """
    wish = policy.tls
    if wish is None and host.tls_rule is TlsRule.REQUIRED:
        wish = True
    if not wish or host.tls_rule is TlsRule.OFF:
        return {"is_off": host.tls_rule is TlsRule.OFF}
    failures, shown = [], {}
    for identity in list_identities(host.certificates, "server"):
        problems = list_problems(identity, name=host.migration_address)
        failures += [_failure(host.name, problem) for problem in problems]
        if not problems:
            shown[identity.name] = read_shown(identity)
    return {"is_wanted": True, "failures": failures, "shown": shown}


def decide_on_source(
    host: HostServices, policy: MigrationPolicy, *, dst: str, address: str, there: Mapping[str, Any]
) -> tuple[bool, list[Failure]]:
    """Decide whether the migration uses TLS, and check that it can.

    Args:
        host: the source's parts.
        policy: the migration's.
        dst: the destination.
        address: the destination's.
        there: what look_on_destination has told.

    Returns:
        Whether it does, and the failed checks.
    """
    wish = True if there.get("is_wanted") else policy.tls
    try:
        is_tls = decide_tls(host.tls_rule, wish)
    except InvalidRequest as exc:
        return bool(wish), [_failure(host.name, Problem(f"refuses: {exc.message}", exc.hint))]
    if not is_tls:
        return False, []
    if there.get("is_off"):
        hint = "Give that host certificates and set migration_tls there."
        return True, [_failure(dst, Problem("has migration_tls off", hint))]
    failures = list(there.get("failures", []))
    libvirt, qemu = list_identities(host.certificates, "client")
    for identity in (libvirt, qemu):
        mine = list_problems(identity)
        shown = (there.get("shown") or {}).get(identity.name)
        if not mine and shown:
            # One of the two suffices: an authority that differs is both sides' problem.
            mine = [
                problem
                for problem in (
                    find_distrust(identity, shown["certificate"], of=dst),
                    find_foreign_authority(identity, shown["authority"], of=dst),
                )
                if problem is not None
            ]
        failures += [_failure(host.name, problem) for problem in mine]
    if not failures:
        reason = probe_libvirt_tls(libvirt, address, LIBVIRT_TLS_PORT, HANDSHAKE_TIMEOUT_S)
        if reason is not None:
            hint = (
                "Let libvirtd there listen for TLS, and tell it of new certificates: "
                "virt-admin server-update-tls libvirtd."
            )
            message = f"does not come to terms with libvirt on {dst}: {reason}"
            failures.append(_failure(host.name, Problem(message, hint)))
    return True, failures


def is_encrypted(context: StepContext) -> bool:
    """Return what check_source has decided."""
    return bool(context.details["check_source"].get("tls"))


def libvirt_uri(address: str, *, is_tls: bool) -> str:
    """Return where a destination's libvirt is reached from its source."""
    host = f"[{address}]" if ":" in address else address
    return f"qemu+{'tls' if is_tls else 'tcp'}://{host}/system"


def _failure(host: str, problem: Problem) -> Failure:
    return {
        "check": "tls",
        "code": "check_tls",
        "message": f"{host}: {problem.message}.",
        "hint": problem.hint,
    }
