"""A guest for the checker's tests, and a look that leaves out what is known."""

import uuid
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from innkeeper import Innkeeper
from lab.handle import Lab
from tests.chaos.checker.checker import Checker, Violation, format_violations
from tests.chaos.checker.sabotage import Find


@pytest.fixture(scope="module")
def known_violations(lab: Lab) -> set[tuple[str, str]]:
    """What earlier tests have left broken in this lab; nothing, when it is fresh."""
    found = Checker(lab).check(settled=True)
    if found:
        warnings.warn(format_violations(found), stacklevel=1)
    return {(violation.invariant, violation.what) for violation in found}


@pytest.fixture
def find(lab: Lab, known_violations: set[tuple[str, str]]) -> Find:
    """Look once, without patience for what repairs itself."""

    def look(*, settled: bool = True, patience_s: float = 0.0) -> list[Violation]:
        found = Checker(lab, patience_s=patience_s).check(settled=settled)
        return [v for v in found if (v.invariant, v.what) not in known_violations]

    return look


@pytest.fixture(scope="module")
def moved_guest(
    client: Innkeeper, lab: Lab, known_violations: set[tuple[str, str]]
) -> Iterator[dict[str, Any]]:
    """A guest that was moved once, with one disk copied and one shared.

    Tests put back whatever they do to it.
    """
    env, name = lab.env(), f"t-{uuid.uuid4().hex[:8]}"
    image: dict[str, Any] = {
        "image": env["INNKEEPER_LAB_BOOT_IMAGE"],
        "sha256": env["INNKEEPER_LAB_BOOT_IMAGE_SHA256"],
    }
    disks = [{"size_mib": 1, "pool": "shared"}]
    client.spawn(name=name, host=lab.hosts[0], memory_mib=64, disks=disks, **image).wait(60)
    yield client.migrate(name, dst=lab.hosts[1]).wait(60)
    client.delete(name).wait(60)
