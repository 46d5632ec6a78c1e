"""What a console's lines and a guest's resets are taken for."""

import pytest

from virt.boot_signs import ConsoleSigns, is_boot_loop
from virt.cloud_init import Verdict, read_verdict

PANIC = b"[    0.53] Kernel panic - not syncing: VFS: Unable to mount root fs"
END = b"[    0.54] ---[ end Kernel panic - not syncing: VFS: Unable to mount root fs ]---"
TRACE = b"[    0.53] Call Trace:"


@pytest.mark.parametrize(
    ("line", "is_finished"),
    [
        (
            b"Cloud-init v. 0 (x) finished at now. Datasource DataSourceNoCloud.  Up 3.1 seconds",
            True,
        ),
        (
            b"[   25.1] cloud-init[7]: Cloud-init v. 23 finished at x. Datasource y. Up 25 seconds",
            True,
        ),
        (b"\x1b[0mCloud-init v. 23.4 finished at x. Datasource y.  Up 25.00 seconds", True),
        (b"Cloud-init v. 23.4 finished at x. Datasource y.  Up 2", False),
        (b"Cloud-init v. 23.4 running 'modules:final' at x. Up 25.00 seconds.", False),
        (b"echo Cloud-init v. 23.4 finished at x. Datasource y.  Up 25.00 seconds", False),
    ],
)
def test_cloud_inits_last_words(line: bytes, is_finished: bool) -> None:
    signs = ConsoleSigns()
    signs.read([line])
    assert signs.is_finished is is_finished


@pytest.mark.parametrize(
    ("readings", "has_panicked"),
    [
        ([[PANIC]], True),
        ([[PANIC, TRACE, TRACE]], True),
        ([[PANIC], [TRACE], [END]], True),
        # The unfinished line comes again when it is whole.
        ([[PANIC, END[:40]], [END]], True),
        ([[b"[    0.5][    T1] Kernel panic - not syncing: Attempted to kill init!"]], True),
        ([[PANIC, b"[    1.0] Rebooting in 5 seconds.."]], True),
        ([[PANIC, b"[    1.0] Rebooting in 5 seconds.."], [b"Booting from Hard Disk..."]], False),
        ([[PANIC, END, b"login:"]], False),
        ([[PANIC, b"[    0.0] Linux version 6.1.0"]], False),
        ([[PANIC, END], [b"Linux version 6.1.0"], [PANIC]], True),
        ([[b"journal: Kernel panic - not syncing: of yesterday"]], False),
        ([[b"all is well"]], False),
    ],
)
def test_a_panic_that_nothing_follows(readings: list[list[bytes]], has_panicked: bool) -> None:
    signs = ConsoleSigns()
    for lines in readings:
        signs.read(lines)
    assert (signs.panic is not None) is has_panicked


@pytest.mark.parametrize(
    ("resets_s", "is_loop"),
    [
        ([], False),
        ([0.0], False),
        # Three restarts, each as SeaBIOS makes it.
        ([0.0, 0.1, 0.2, 20.0, 20.1, 20.2, 40.0, 40.1, 40.2], False),
        ([0.0, 0.1, 0.2, 20.0, 20.1, 20.2, 40.0, 40.1, 40.2, 60.0], True),
        ([0.0, 20.0, 40.0, 60.0], True),
        ([0.0, 50.0, 100.0, 150.0], False),
        ([number / 10 for number in range(9)], False),
        ([number / 10 for number in range(10)], True),
    ],
)
def test_what_is_a_loop(resets_s: list[float], is_loop: bool) -> None:
    assert bool(resets_s and is_boot_loop(resets_s)) is is_loop


@pytest.mark.parametrize(
    ("output", "verdict"),
    [
        ('{"status": "done", "errors": []}', Verdict(status="done")),
        ('.....{"status": "done", "errors": []}\n', Verdict(status="done")),
        ('{"status": "error", "errors": ["a\\nb"]}', Verdict(status="error", errors=("a b",))),
        (
            '{"status": "error", "errors": [], "detail": "d"}',
            Verdict(status="error", errors=("d",)),
        ),
        ('{"status": "disabled"}', Verdict(status="disabled")),
        ('{"status": "running"}', None),
        ("\n...status: done\n", Verdict(status="done")),
        ("status: error\ndetail:\nbroken", Verdict(status="error", errors=("broken",))),
        ("usage: cloud-init", None),
        ("", None),
        ("{" * 100_000, None),
        ('["status"]', None),
        ('{"status": {"a": 1}, "errors": {"b": 2}}', None),
    ],
)
def test_cloud_inits_verdict(output: str, verdict: Verdict | None) -> None:
    assert read_verdict(output) == verdict


def test_a_long_story_is_cut() -> None:
    verdict = read_verdict(
        '{"status": "error", "errors": ' + str(["x" * 999] * 99).replace("'", '"') + "}"
    )
    assert verdict is not None
    assert len(verdict.errors) == 10
    assert {len(line) for line in verdict.errors} == {300}
