"""Which of the operating system's errors are the host's."""

import errno
import os

import pytest

from tasks.os_faults import find_host_fault


@pytest.mark.parametrize(
    ("number", "is_hosts"),
    [
        (errno.ENOSPC, True),
        (errno.EDQUOT, True),
        (errno.EROFS, True),
        (errno.EIO, True),
        (errno.ENOTDIR, True),
        (errno.EACCES, True),
        # A file that is not there, or is, is a thing that we have not thought of.
        (errno.ENOENT, False),
        (errno.EEXIST, False),
        (errno.EINVAL, False),
        (errno.ECONNREFUSED, False),
    ],
)
def test_a_broken_host_is_told_from_a_defect(number: int, is_hosts: bool) -> None:
    fault = find_host_fault(OSError(number, os.strerror(number), "/pool/x"), "hv-a")
    assert (fault is not None) is is_hosts
    if fault is not None:
        assert fault.host == "hv-a"
        assert f"{os.strerror(number)} at /pool/x" in fault.message
        assert fault.details["errno"] == errno.errorcode[number]


def test_an_error_without_a_number_is_a_defect() -> None:
    assert find_host_fault(OSError("odd"), "hv-a") is None
