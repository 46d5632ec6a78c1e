"""Post-copy over parallel connections: only with a QEMU that can."""

from collections.abc import Iterator, Mapping

from innkeeper.types import MigrationPolicy
from tasks.failed_check import Failure, failure
from tasks.migration_checks.move import Move
from tasks.migration_checks.versions import series

# Before this the guest ends shut off on the destination.
PARALLEL_POST_COPY = (10, 1)


def check_parallel(move: Move) -> Iterator[Failure]:
    """Post-copy and parallel connections need QEMU 10.1 on both hosts."""
    versions = {name: host.qemu_version for name, host in move.hosts.items()}
    yield from list_unable(move.policy, versions)


def list_unable(
    policy: MigrationPolicy, qemu_versions: Mapping[str, str | None]
) -> Iterator[Failure]:
    """Yield what of a policy two hosts' releases of QEMU cannot do.

    Args:
        policy: what is wanted.
        qemu_versions: of either host, by its name.
    """
    if not policy.post_copy or policy.parallel_connections <= 1:
        return
    too_old = [
        f"{host} has {version or 'an unknown one'}"
        for host, version in sorted(qemu_versions.items())
        if series(version) < PARALLEL_POST_COPY
    ]
    if too_old:
        yield failure(
            "parallel",
            f"Post-copy over parallel connections needs QEMU 10.1; {' and '.join(too_old)}.",
            "Ask for one connection, or for no post-copy.",
        )
