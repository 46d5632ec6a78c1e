"""A migration's policy: whose word counts, what excludes what, and what may be changed."""

import pytest

from innkeeper.errors import InvalidRequest
from innkeeper.states import Handover
from innkeeper.types import MigrationChange, MigrationDefaults, MigrationPolicy
from tasks.migration_checks.parallel import list_unable
from tasks.migration_policy import change, resolve
from workers.settings import Settings

NOTHING = MigrationDefaults()


def test_the_request_counts_before_the_guest_and_the_guest_before_the_settings() -> None:
    told = resolve(
        MigrationPolicy(max_downtime_ms=100),
        instance=MigrationDefaults(max_downtime_ms=200, bandwidth_mib_s=20),
        settings=MigrationDefaults(max_downtime_ms=400, bandwidth_mib_s=40, auto_converge=False),
    )

    assert told.policy == MigrationPolicy(
        max_downtime_ms=100, bandwidth_mib_s=20, auto_converge=False
    )
    assert {
        n: told.origins[n] for n in ("max_downtime_ms", "bandwidth_mib_s", "auto_converge")
    } == {
        "max_downtime_ms": "request",
        "bandwidth_mib_s": "instance",
        "auto_converge": "settings",
    }
    assert told.origins["deadline_s"] == "default"


def test_a_request_that_repeats_a_default_still_counts() -> None:
    told = resolve(
        MigrationPolicy(post_copy=False),
        instance=NOTHING,
        settings=MigrationDefaults(post_copy=True),
    )
    assert not told.policy.post_copy
    assert told.policy.handover is Handover.SAFE


def test_post_copy_implies_the_direct_hand_over_unless_somebody_has_said_safe() -> None:
    told = resolve(MigrationPolicy(post_copy=True), instance=NOTHING, settings=NOTHING)
    assert (told.policy.handover, told.origins["handover"]) == (Handover.FAST, "post_copy")

    with pytest.raises(InvalidRequest) as refused:
        resolve(
            MigrationPolicy(post_copy=True),
            instance=NOTHING,
            settings=MigrationDefaults(handover=Handover.SAFE),
        )
    assert "handover by settings" in refused.value.message


@pytest.mark.parametrize(
    ("policy", "paths"),
    [
        (MigrationPolicy(post_copy=True, handover=Handover.SAFE), ["post_copy"]),
        (MigrationPolicy(on_timeout="post_copy"), ["on_timeout"]),
        (MigrationPolicy(max_downtime_ms=5000, deadline_s=5), ["max_downtime_ms"]),
        (
            MigrationPolicy(on_timeout="post_copy", max_downtime_ms=5000, deadline_s=1),
            ["on_timeout", "max_downtime_ms"],
        ),
        (MigrationPolicy(on_timeout="post_copy", post_copy=True), []),
        (MigrationPolicy(on_timeout="pause", parallel_connections=4), []),
    ],
)
def test_what_excludes_what_is_told_all_at_once(policy: MigrationPolicy, paths: list[str]) -> None:
    if not paths:
        resolve(policy, instance=NOTHING, settings=NOTHING)
        return
    with pytest.raises(InvalidRequest) as refused:
        resolve(policy, instance=NOTHING, settings=NOTHING)
    assert [problem["path"] for problem in refused.value.details["problems"]] == paths


def test_a_change_says_who_has_made_it_and_leaves_the_rest() -> None:
    before = resolve(MigrationPolicy(bandwidth_mib_s=2), instance=NOTHING, settings=NOTHING)
    after = change(before.policy, before.origins, MigrationChange(bandwidth_mib_s=0), by="eve@desk")
    assert after.policy == MigrationPolicy(bandwidth_mib_s=0)
    assert after.origins["bandwidth_mib_s"] == "migrate-set by eve@desk"
    with pytest.raises(InvalidRequest, match="post_copy must be allowed"):
        change(before.policy, before.origins, MigrationChange(on_timeout="post_copy"), by="eve")


def test_settings_are_the_last_word_but_one() -> None:
    settings = Settings(
        database_url="postgresql+psycopg://x",
        broker_url="redis://x",
        result_url="redis://x",
        migration_bandwidth_mib_s="100",
        migration_on_timeout="pause",
    )
    assert settings.migration_defaults == MigrationDefaults(bandwidth_mib_s=100, on_timeout="pause")


@pytest.mark.parametrize(
    ("post_copy", "connections", "dst_version", "is_refused"),
    [
        (True, 4, "7.2.22", True),
        (True, 4, "10.0.9", True),
        (True, 4, "?", True),
        (True, 4, "10.1.0", False),
        (True, 1, "7.2.22", False),
        (False, 4, "7.2.22", False),
    ],
)
def test_post_copy_in_parallel_needs_a_qemu_that_can(
    post_copy: bool, connections: int, dst_version: str, is_refused: bool
) -> None:
    policy = MigrationPolicy(post_copy=post_copy, parallel_connections=connections)
    failures = list(list_unable(policy, {"hv-a": "10.2.0", "hv-b": dst_version}))
    assert [failure["check"] for failure in failures] == (["parallel"] if is_refused else [])
    assert not failures or f"hv-b has {dst_version}" in failures[0]["message"]
