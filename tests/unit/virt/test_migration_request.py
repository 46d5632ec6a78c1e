"""What libvirt is told of a migration's cap, which QEMU remembers from job to job."""

import libvirt
import pytest

from virt.migration import MigrationRequest, migration_params


@pytest.mark.parametrize(
    ("post_copy", "is_resumed", "bandwidth_mib_s", "told"),
    [
        (False, False, 0, None),
        (False, False, 5, None),
        (True, False, 0, None),
        (True, False, 5, 5),
        (True, True, 5, 5),
        # A cap that was lifted while the connection was broken.
        (True, True, 0, 0),
    ],
)
def test_the_cap_of_a_post_copy(
    post_copy: bool, is_resumed: bool, bandwidth_mib_s: int, told: int | None
) -> None:
    request = MigrationRequest(
        dst_uri="qemu+tcp://b/system",
        dst_xml="<domain/>",
        persistent_xml="<domain/>",
        post_copy=post_copy,
        is_resumed_post_copy=is_resumed,
        bandwidth_mib_s=bandwidth_mib_s,
    )
    params = migration_params(request)
    assert params.get(libvirt.VIR_MIGRATE_PARAM_BANDWIDTH_POSTCOPY) == told
    assert params.get(libvirt.VIR_MIGRATE_PARAM_BANDWIDTH) == (bandwidth_mib_s or None)
