"""The terminal: one JSON document, exit codes by class, no tracebacks."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from control_stub import Control
from private_redis import PrivateRedis, free_port

from innkeeper import cli
from innkeeper.cli.app import app, run
from tests.waiting import PATIENCE_S, wait_until

COMMANDS = sorted(command.name or "" for command in app.registered_commands)
SPAWN = ("--image", "/srv/noble.qcow2")

Ran = tuple[int, str, str]
Run = Callable[..., Ran]


@pytest.fixture
def environment(private_redis: PrivateRedis) -> dict[str, str]:
    return {
        "INNKEEPER_BROKER_URL": private_redis.broker_url,
        "INNKEEPER_RESULT_URL": private_redis.result_url,
    }


@pytest.fixture
def innkeeper(
    control: Control,
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def call(*arguments: str) -> Ran:
        code = run(arguments)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def document(ran: Ran) -> Any:
    assert ran[2] == ""
    return json.loads(ran[1])


def test_spawn_waits_and_tells_every_step(innkeeper: Run) -> None:
    code, out, err = innkeeper("spawn", "vm-1", *SPAWN)

    assert code == 0
    assert out.startswith("vm-1 is active on hv-a (")
    for step in ("fetch_image", "define", "start"):
        assert f"{step} on hv-a: done" in err


def test_spawn_prints_one_json_document(innkeeper: Run) -> None:
    ran = innkeeper("spawn", "vm-1", *SPAWN, "--json")

    assert ran[0] == 0
    answer = document(ran)
    assert answer["state"] == "succeeded"
    assert answer["result"]["host"] == "hv-a"
    assert set(answer) == {"operation_id", "state", "result"}


def test_all_options_of_the_verbs_arrive(innkeeper: Run, control: Control) -> None:
    ran = innkeeper(
        *("spawn", "vm-7", "--image", "noble.raw", "--image-format", "raw", "--vcpus", "2"),
        *("--memory-mib", "512", "--disk-gib", "3", "--host", "hv-a", "--pool", "shared"),
        *("--wait", "agent", "--boot-timeout-s", "9", "--bridge", "br0", "--power-policy", "sync"),
        *("--metadata", "a=b=c", "--sha256", "0" * 64, "--reason", "why", "--no-wait", "--json"),
    )
    operation_id = document(ran)["operation_id"]

    _, kwargs = control.await_request(operation_id)
    assert kwargs["reason"] == "why"
    assert kwargs["spec"] == {
        "name": "vm-7",
        "image": os.path.abspath("noble.raw"),
        "image_format": "raw",
        "vcpus": 2,
        "memory_mib": 512,
        "disk_gib": 3,
        "host": "hv-a",
        "pool": "shared",
        "wait": "agent",
        "boot_timeout_s": 9,
        "bridge": "br0",
        "power_policy": "sync",
        "metadata": {"a": "b=c"},
        "sha256": "0" * 64,
    }


@pytest.mark.parametrize(
    ("arguments", "policy"),
    [
        (
            (
                *("migrate", "vm-1", "--to", "hv-b", "--storage", "block", "--handover", "fast"),
                *("--max-downtime-ms", "90", "--deadline-s", "60", "--bandwidth-mib-s", "5"),
            ),
            {
                "dst": "hv-b",
                "storage": "block",
                "handover": "fast",
                "max_downtime_ms": 90,
                "deadline_s": 60,
                "bandwidth_mib_s": 5,
            },
        ),
        (("stop", "vm-1", "--force", "--grace-s", "1"), {"force": True, "grace_s": 1}),
        (("reboot", "vm-1", "--hard"), {"kind": "hard"}),
        (("start", "vm-1"), None),
        (("delete", "vm-1"), None),
    ],
)
def test_verbs(
    innkeeper: Run, control: Control, arguments: tuple[str, ...], policy: dict[str, Any] | None
) -> None:
    code, out, _ = innkeeper(*arguments, "--no-wait")

    assert code == 0
    _, kwargs = control.await_request(out.strip())
    assert kwargs["instance"] == "vm-1"
    assert kwargs.get("policy") == policy


@pytest.mark.parametrize(
    ("arguments", "error", "exit_code"),
    [
        (("spawn", "VM", *SPAWN), "invalid_request", 2),
        (("spawn", "vm-1", *SPAWN, "--metadata", "x"), "invalid_request", 2),
        (("spawn", "vm-1"), "invalid_request", 2),
        (("spawn", "vm-1", *SPAWN, "--wait", "long"), "invalid_request", 2),
        (("frobnicate",), "invalid_request", 2),
        (("show", "vm-0"), "not_found", 3),
        (("explain", "ffffffff"), "not_found", 3),
        (("cancel", "xyz"), "invalid_request", 2),
        (("spawn", "no-host", *SPAWN), "no_host_fits", 5),
        (("spawn", "dies", *SPAWN), "guest_died", 8),
        (("spawn", "slow", *SPAWN, "--timeout-s", "0.5"), "wait_timeout", 13),
        (("show", "vm-bug"), "internal_error", 70),
    ],
)
def test_errors_have_their_exit_code_in_words_and_in_json(
    innkeeper: Run, arguments: tuple[str, ...], error: str, exit_code: int
) -> None:
    code, out, err = innkeeper(*arguments)
    assert code == exit_code
    assert out == ""
    assert "Error: " in err
    assert "Try: " in err
    assert "Traceback" not in err

    ran = innkeeper(*arguments, "--json")
    assert ran[0] == exit_code
    wire = document(ran)["error"]
    assert wire["code"] == error
    assert {"message", "hint", "effect", "host", "step", "retryable", "details"} <= set(wire)


def test_refusals_are_told_one_by_one(innkeeper: Run) -> None:
    assert "- hv-a: is disabled" in innkeeper("spawn", "no-host", *SPAWN)[2]


def test_looking_around(innkeeper: Run) -> None:
    for command in (("ls",), ("show", "vm-1"), ("hosts",), ("operations",), ("doctor",)):
        code, out, _ = innkeeper(*command)
        assert code == 0
        assert len(out.splitlines()) >= 2
        assert document(innkeeper(*command, "--json"))
    assert "vm-1" in innkeeper("ls")[1]
    shown = innkeeper("show", "vm-1")[1]
    assert "team" in shown
    assert "1 GiB in local and shared" in shown
    assert "data, 1 MiB, raw on virtio in shared" in shown
    assert "raw on virtio in local" not in shown
    assert innkeeper("disable", "hv-a", "--reason", "new disks")[1].startswith(
        "hv-a is disabled: new disks ("
    )
    assert innkeeper("enable", "hv-a")[1] == "hv-a is enabled\n"
    assert document(innkeeper("enable", "hv-a", "--json"))["is_enabled"]
    assert document(innkeeper("disable", "hv-a", "--json"))["is_enabled"] is False


def test_an_operation_is_followed_by_the_beginning_of_its_id(
    innkeeper: Run, control: Control
) -> None:
    operation_id = innkeeper("spawn", "slow", *SPAWN, "--no-wait")[1].strip()
    control.await_request(operation_id)
    assert operation_id in innkeeper("operations", "--active")[1]

    assert innkeeper("cancel", operation_id[:13])[0] == 0
    code, _, err = innkeeper("watch", operation_id[:13])
    assert code == 11
    assert "Cancelled by tests." in err
    assert innkeeper("explain", operation_id[:13])[0] == 0


def test_explain_tells_steps_attempts_recovery_and_error(innkeeper: Run) -> None:
    wire = document(innkeeper("spawn", "dies", *SPAWN, "--json"))["error"]
    operation_id = wire["details"]["operation_id"]

    code, out, _ = innkeeper("explain", operation_id)

    assert code == 0
    assert "spawn of dies is failed" in out
    assert re.search(r"define +hv-a +1 .* failed", out)
    assert "03:04:05.678 fetch_image: adopted attempt=2" in out
    assert "Where: host hv-a, step define" in out
    assert document(innkeeper("explain", operation_id, "--json"))["state"] == "failed"


def test_explain_knows_a_request_refused_at_the_door(innkeeper: Run) -> None:
    wire = document(innkeeper("spawn", "no-host", *SPAWN, "--json"))["error"]

    assert innkeeper("explain", wire["details"]["operation_id"])[0] == 5


def test_doctor_works_when_nothing_else_does(
    innkeeper: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = f"redis://127.0.0.1:{free_port()}/0"
    monkeypatch.setenv("INNKEEPER_BROKER_URL", nowhere)
    monkeypatch.setenv("INNKEEPER_RESULT_URL", nowhere)
    ran = innkeeper("doctor", "--json")
    assert ran[0] == 13
    assert document(ran)["ok"] is False
    assert [each["part"] for each in document(ran)["parts"]] == ["broker", "result backend"]
    assert all(each["hint"] for each in document(ran)["parts"])

    monkeypatch.delenv("INNKEEPER_BROKER_URL")
    code, out, _ = innkeeper("doctor")
    assert code == 13
    assert "INNKEEPER_BROKER_URL" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_an_example_and_json(innkeeper: Run, command: str) -> None:
    code, out, _ = innkeeper(command, "--help")

    assert code == 0
    assert f"Example: innkeeper {command}" in out
    assert "--json" in out


def test_without_arguments_the_commands_are_listed(innkeeper: Run) -> None:
    code, out, _ = innkeeper()

    assert code == 0
    assert all(command in out for command in COMMANDS)


def test_a_defect_is_told_without_a_traceback(
    innkeeper: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("innkeeper.client.Innkeeper.hosts", lambda _: 1 / 0)

    code, _, err = innkeeper("hosts")

    assert code == 70
    assert "ZeroDivisionError" in err
    assert "Traceback" not in err


def test_without_the_extra_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in list(sys.modules):
        if name.startswith("innkeeper.cli."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "typer", None)

    with pytest.raises(SystemExit, match=r"pip install 'innkeeper\[cli\]'"):
        cli.main()


PROGRAM = (sys.executable, "-c", "from innkeeper.cli import main; main()")


@pytest.mark.parametrize("as_json", [False, True])
def test_ctrl_c_detaches_and_says_how_to_watch_again(
    control: Control, environment: dict[str, str], as_json: bool
) -> None:
    known = set(control.operations)
    watched = Counter(control.looks)
    program = subprocess.Popen(
        [*PROGRAM, "spawn", "slow", *SPAWN, *(["--json"] if as_json else [])],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background they are deaf to Ctrl-C, and so are their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        # At its second look it has shown what the first one told it.
        wait_until(
            lambda: any(n > 1 for n in (control.looks - watched).values()), what="it watches"
        )
        (operation_id,) = set(control.operations) - known
        program.send_signal(signal.SIGINT)
        out, err = program.communicate(timeout=PATIENCE_S)
    finally:
        program.kill()

    assert program.returncode == 130
    assert "Traceback" not in err
    if as_json:
        assert json.loads(out) == {"operation_id": operation_id, "detached": True}
    else:
        assert f"innkeeper watch {operation_id}" in err
    control.operations[operation_id]["cancelled"] = True


def test_a_terminal_shows_a_bar_and_the_steps_that_ended(
    control: Control, environment: dict[str, str]
) -> None:
    ours, theirs = pty.openpty()
    program = subprocess.Popen(
        [*PROGRAM, "spawn", "vm-1", *SPAWN],
        env=os.environ | environment | {"TERM": "xterm", "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 4096):
            shown += chunk
    except OSError:
        pass  # The other side has closed.
    os.close(ours)
    out, _ = program.communicate(timeout=PATIENCE_S)

    assert program.returncode == 0
    assert out.startswith("vm-1 is active on hv-a")
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert "✓ fetch_image on hv-a: done in 12 ms (attempt 2)" in text
    assert "%" in text


@pytest.mark.parametrize("command", [("hosts",), ("hosts", "--json"), ("show", "vm-0", "--json")])
def test_a_closed_pipe_is_borne_in_silence(
    control: Control, environment: dict[str, str], command: tuple[str, ...]
) -> None:
    ran = subprocess.run(
        ["bash", "-c", '"$@" | true', "bash", *PROGRAM, *command],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )

    assert ran.stderr == ""
