"""Which policy a migration has: the request over the guest over the settings; and what cannot be.

Pure. The policy in force stands in the operation's ``params`` with where each value came from, so
that every step reads one thing and ``explain`` shows the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from innkeeper.errors import InvalidRequest
from innkeeper.migration_types import MigrationChange, MigrationDefaults, MigrationPolicy
from innkeeper.states import Handover

REQUEST, INSTANCE, SETTINGS, DEFAULT = "request", "instance", "settings", "default"


@dataclass(frozen=True, slots=True)
class ResolvedPolicy:
    """A policy that fits together.

    Args:
        policy: what holds.
        origins: of each field ``request``, ``instance``, ``settings``, ``default``, or another
            field that implies it.
    """

    policy: MigrationPolicy
    origins: Mapping[str, str]

    def to_params(self) -> dict[str, Any]:
        """Return what stands in the operation's ``params``."""
        return {"policy": self.policy.model_dump(mode="json"), "policy_from": dict(self.origins)}


def resolve(
    asked: MigrationPolicy,
    *,
    instance: MigrationDefaults,
    settings: MigrationDefaults,
) -> ResolvedPolicy:
    """Lay a request over the guest's own defaults and the settings.

    Args:
        asked: what the caller said; only the fields that were set count.
        instance: the guest's.
        settings: the control worker's.

    Raises:
        InvalidRequest: the whole does not fit together; every contradiction at once.
    """
    values: dict[str, Any] = {}
    origins = dict.fromkeys(MigrationPolicy.model_fields, DEFAULT)
    layers: tuple[tuple[str, MigrationDefaults | MigrationPolicy], ...] = (
        (SETTINGS, settings),
        (INSTANCE, instance),
        (REQUEST, asked),
    )
    for origin, layer in layers:
        for name in layer.model_fields_set:
            value = getattr(layer, name)
            if value is not None:
                values[name], origins[name] = value, origin
    if values.get("post_copy") and "handover" not in values:
        values["handover"], origins["handover"] = Handover.FAST, "post_copy"
    policy = MigrationPolicy.model_validate(values)
    refuse_contradictions(policy, origins)
    return ResolvedPolicy(policy, origins)


def change(
    policy: MigrationPolicy, origins: Mapping[str, str], wanted: MigrationChange, *, by: str
) -> ResolvedPolicy:
    """Lay what somebody wants changed over the policy in force.

    Args:
        policy: what holds now.
        origins: where each value came from.
        wanted: the changes.
        by: who asks.

    Raises:
        InvalidRequest: the whole would not fit together.
    """
    given = wanted.model_dump(exclude_none=True)
    changed = policy.model_copy(update=given)
    since = {**origins, **dict.fromkeys(given, f"migrate-set by {by}")}
    refuse_contradictions(changed, since)
    return ResolvedPolicy(changed, since)


def refuse_contradictions(policy: MigrationPolicy, origins: Mapping[str, str]) -> None:
    """Refuse a policy whose parts exclude each other.

    Raises:
        InvalidRequest: with every contradiction.
    """
    problems = list_contradictions(policy, origins)
    if problems:
        listing = "; ".join(f"{p['path']}: {p['message']}" for p in problems)
        raise InvalidRequest(
            f"The migration's policy contradicts itself ({listing}).", {"problems": problems}
        )


def list_contradictions(
    policy: MigrationPolicy, origins: Mapping[str, str]
) -> list[dict[str, str]]:
    """Return what in a policy excludes what else, and where both came from."""

    def told(*names: str) -> str:
        return ", ".join(f"{name} by {origins.get(name, DEFAULT)}" for name in names)

    problems = []
    if policy.post_copy and policy.handover is Handover.SAFE:
        problems.append(
            (
                "post_copy",
                "a guest in post-copy runs on the destination before the record says so, which"
                f" handover: safe forbids ({told('post_copy', 'handover')})",
            )
        )
    if policy.on_timeout == "post_copy" and not policy.post_copy:
        problems.append(
            (
                "on_timeout",
                "post_copy must be allowed when the migration begins"
                f" ({told('on_timeout', 'post_copy')})",
            )
        )
    if policy.max_downtime_ms >= policy.deadline_s * 1000:
        problems.append(
            (
                "max_downtime_ms",
                f"a pause of {policy.max_downtime_ms} ms is not shorter than the whole"
                f" migration's {policy.deadline_s:g} s ({told('max_downtime_ms', 'deadline_s')})",
            )
        )
    return [{"path": path, "message": message} for path, message in problems]


def policy_of(params: Mapping[str, Any]) -> MigrationPolicy:
    """Return the policy in force, as an operation's ``params`` have it."""
    return MigrationPolicy.model_validate(params["policy"])
