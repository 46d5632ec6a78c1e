"""Every error has its culprit, and only a host's own fault leads to another host."""

from typing import Any

import pytest

from innkeeper.errors import catalogue
from tasks.blame import BLAME, Blame, is_fault_of_host, list_tried

EXPECTED = {
    Blame.HOST: "host_fenced host_unsuitable hypervisor_busy hypervisor_error hypervisor_refused "
    "hypervisor_unavailable network_not_ready precheck_failed secret_unreadable start_failed "
    "start_interrupted",
    Blame.IMAGE: "backing_file digest_mismatch external_data_file fetch_failed format_mismatch "
    "image_error image_too_large malformed_image not_an_image source_refused truncated_image "
    "source_lost unsafe_image unsupported_image_feature",
    Blame.USER: "already_exists busy capacity_error conflict define_rejected invalid_request "
    "no_host_fits not_found request_error state_conflict",
    Blame.GUEST: "agent_unresponsive boot_loop boot_timeout cloud_init_failed "
    "file_injection_failed guest_died guest_error migration_aborted migration_error "
    "migration_timeout stop_timeout",
    Blame.NOBODY: "attempts_exhausted broker_unavailable cancelled deadline_exceeded "
    "domain_not_found fencing_error fencing_failed host_returned innkeeper_error internal_error "
    "events_lost interrupted lease_lost not_fenced "
    "outcome_unknown service_error stale_domain wait_timeout",
}


def test_every_code_of_the_catalogue_has_a_verdict() -> None:
    assert set(BLAME) == set(catalogue())


@pytest.mark.parametrize("blame", list(Blame))
def test_the_verdicts(blame: Blame) -> None:
    assert {code for code in BLAME if BLAME[code] is blame} == set(EXPECTED[blame].split())


@pytest.mark.parametrize("code", sorted(catalogue()))
def test_another_host_is_tried_only_for_a_hosts_own_fault(code: str) -> None:
    error = {"code": code, "host": "hv-a"}
    assert is_fault_of_host(error, "hv-a") is (BLAME[code] is Blame.HOST)


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (None, False),
        ({"code": "of_a_newer_release", "host": "hv-a"}, False),
        ({"code": "host_unsuitable"}, True),
        ({"code": "host_unsuitable", "host": "hv-b"}, False),
        ({"code": "hypervisor_refused", "host": "hv-b"}, False),
        # The source looks on the destination's behalf.
        ({"code": "precheck_failed", "host": "hv-b"}, True),
    ],
)
def test_the_other_hosts_failure_is_not_this_ones(
    error: dict[str, Any] | None, verdict: bool
) -> None:
    assert is_fault_of_host(error, "hv-a") is verdict


def test_hosts_that_a_filter_refused_were_not_tried() -> None:
    refusals = [
        {"host": "a", "code": "memory"},
        {"host": "b", "code": "host_unsuitable"},
        {"host": "c", "code": "ignored"},
    ]
    assert list_tried(refusals) == {"b"}
