"""What proves that a host is dead, and the hook that switches one off."""

import os
import sys
import time
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from innkeeper.errors import FencingFailed, LeaseLost
from models.fencing import Vitals
from tasks.fencing import Proof, judge
from tasks.fencing_hook import FencingHook, check_command, fill_in, run_hook

FENCING = UUID(int=1)


def vitals(heard_s: float | None, fencing_id: UUID | None = None) -> Vitals:
    return Vitals("10.0.0.1", heard_s, fencing_id, None if fencing_id is None else 5.0, None)


@pytest.mark.parametrize(
    ("seen", "has_hook", "is_confirmed", "proof"),
    [
        (vitals(None), False, False, Proof.NONE),
        (vitals(3600), False, False, Proof.NONE),
        (vitals(3600), False, True, Proof.OVERRIDE),
        (vitals(None), False, True, Proof.OVERRIDE),
        (vitals(3), False, True, Proof.NONE),
        (vitals(20), False, True, Proof.NONE),
        (vitals(3), True, True, Proof.HOOK),
        (vitals(3), True, False, Proof.HOOK),
        (vitals(3600), True, False, Proof.HOOK),
        (vitals(3600), True, True, Proof.OVERRIDE),
        (vitals(3, FENCING), False, False, Proof.FENCED),
    ],
)
def test_the_proofs(seen: Vitals, has_hook: bool, is_confirmed: bool, proof: Proof) -> None:
    judgement = judge(seen, host="hv-a", has_hook=has_hook, is_confirmed=is_confirmed)
    assert judgement.proof is proof
    assert "hv-a" in judgement.message


def hook_of(path: Path, script: str, *, timeout_s: float = 60) -> FencingHook:
    path.write_text(script)
    return FencingHook(("/bin/sh", str(path), "{host}", "{address}"), timeout_s)


def run(hook: FencingHook, host: str = "hv-a", address: str = "10.0.0.1") -> str:
    argv = fill_in(hook, host=host, address=address)
    return run_hook(hook, argv, host=host, check=lambda: None)


def test_a_hook_is_told_the_host_and_its_end_is_kept(tmp_path: Path) -> None:
    hook = hook_of(tmp_path / "h", 'yes | head -c 900000; printf "\\n$1 $2 \\033[31moff"')
    said = run(hook)
    assert said.endswith("hv-a 10.0.0.1 ?[31moff")
    assert len(said) <= 1000


def test_a_hook_gets_no_shell(tmp_path: Path) -> None:
    script = tmp_path / "h"
    script.write_text('printf %s "$1"')
    hook = FencingHook(("/bin/sh", str(script), "$(id) {host}; reboot"), 60)
    assert run(hook) == "$(id) hv-a; reboot"


def test_a_hook_that_fails_or_is_missing_proves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FencingFailed, match="code 7") as caught:
        run(hook_of(tmp_path / "h", "echo no answer; exit 7"))
    assert caught.value.details["output"] == "no answer"
    missing = FencingHook((str(tmp_path / "none"), "secret-password"), 5)
    with pytest.raises(FencingFailed, match="cannot be run") as caught:
        run(missing)
    assert "secret-password" not in str(caught.value.to_wire())


def test_a_hook_that_does_not_end_is_killed_with_its_children(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    hook = hook_of(tmp_path / "h", f"sleep 600 & echo $! > {mark}; wait", timeout_s=1)
    with pytest.raises(FencingFailed, match="within 1 s"):
        run(hook)
    give_up_at = time.monotonic() + 30
    while _lives(int(mark.read_text())) and time.monotonic() < give_up_at:
        time.sleep(0.02)
    assert not _lives(int(mark.read_text()))


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_lost_step_ends_its_hook(tmp_path: Path) -> None:
    def check() -> None:
        raise LeaseLost("x")

    hook = hook_of(tmp_path / "h", "sleep 600")
    with pytest.raises(LeaseLost):
        run_hook(hook, fill_in(hook, host="a", address="b"), host="a", check=check)


@pytest.mark.parametrize("address", ["", "-oProxyCommand=x", "10.0.0.1; id", "$(id)", "a b"])
def test_an_address_that_is_none_is_not_handed_over(address: str) -> None:
    hook = FencingHook((sys.executable, "{address}"), 5)
    with pytest.raises(FencingFailed, match="cannot be handed"):
        fill_in(hook, host="hv-a", address=address)
    assert fill_in(FencingHook((sys.executable, "{host}"), 5), host="hv-a", address=address)


def test_a_command_is_checked_when_it_is_set() -> None:
    assert check_command(()) == ()
    assert check_command(("/sbin/fence", "{host}", "--ip={address}"))
    with pytest.raises(ValueError, match="absolute"):
        check_command(("fence",))
    with pytest.raises(ValueError, match="neither"):
        check_command(("/sbin/fence", "{hots}"))


def test_a_pool_has_one_id_for_all_who_see_it(tmp_path: Path) -> None:
    from virt.sharing import ensure_pool_id, find_pool_id

    assert find_pool_id(tmp_path) is None
    first = ensure_pool_id(tmp_path)
    assert ensure_pool_id(tmp_path) == find_pool_id(tmp_path) == first
    assert os.listdir(tmp_path) == [".innkeeper-pool-id"]
    other = tmp_path / "other"
    other.mkdir()
    assert ensure_pool_id(other) not in (first, str(uuid4()))
