"""Secrets at the terminal: from a pipe or a prompt, sealed to the workers' key or a pinned one."""

import base64
import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from control_stub import Control
from nacl.public import PrivateKey, SealedBox
from private_redis import PrivateRedis

from innkeeper import Innkeeper
from innkeeper.cli.app import run
from innkeeper.cli.sealing import seal_for_request
from innkeeper.errors import InvalidRequest
from innkeeper.sealing import encode_public_key


def opened(key: PrivateKey, sealed: str) -> bytes:
    return SealedBox(key).decrypt(base64.b64decode(sealed.removeprefix("sealed:v1:")))


@pytest.fixture
def environment(private_redis: PrivateRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INNKEEPER_BROKER_URL", private_redis.broker_url)
    monkeypatch.setenv("INNKEEPER_RESULT_URL", private_redis.result_url)
    monkeypatch.delenv("INNKEEPER_PUBLIC_KEY", raising=False)


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    def pipe(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    return pipe


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(
    ("content", "secret"),
    [
        (b"hush", b"hush"),
        (b"hush\n", b"hush"),
        (b"two\nlines\n", b"two\nlines\n"),
        (b"\x00\xff", b"\x00\xff"),
    ],
)
def test_a_secret_from_a_pipe_is_sealed_to_the_workers_key(
    control: Control,
    piped: Callable[[bytes], None],
    capsys: pytest.CaptureFixture[str],
    content: bytes,
    secret: bytes,
) -> None:
    piped(content)
    assert run(["seal"]) == 0
    line = capsys.readouterr().out
    assert line.count("\n") == 1
    assert opened(control.secret_key, line.strip()) == secret
    piped(content)
    assert opened(control.secret_key, seal_for_request("Secret: ")) == secret


@pytest.mark.usefixtures("environment", "control")
def test_a_pinned_key_beats_the_one_that_the_broker_brings(
    piped: Callable[[bytes], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pinned = PrivateKey.generate()
    monkeypatch.setenv("INNKEEPER_PUBLIC_KEY", encode_public_key(bytes(pinned.public_key)))
    piped(b"hush")
    assert run(["seal", "--json"]) == 0
    assert opened(pinned, json.loads(capsys.readouterr().out)["sealed"]) == b"hush"
    given = PrivateKey.generate()
    with Innkeeper(public_key=encode_public_key(bytes(given.public_key))) as inn:
        assert opened(given, inn.seal("hush")) == b"hush"


@pytest.mark.usefixtures("environment")
def test_the_workers_key_is_printed_for_pinning(
    control: Control, capsys: pytest.CaptureFixture[str]
) -> None:
    key = encode_public_key(bytes(control.secret_key.public_key))
    assert run(["public-key"]) == 0
    assert capsys.readouterr().out == f"{key}\n"
    assert run(["public-key", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"public_key": key}


def test_an_empty_secret_is_refused(piped: Callable[[bytes], None]) -> None:
    piped(b"\n")
    with pytest.raises(InvalidRequest, match="empty"):
        seal_for_request("Secret: ")


@pytest.mark.usefixtures("environment")
def test_at_a_terminal_it_is_asked_for_without_echo(control: Control) -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", "from innkeeper.cli import main; main()", "seal"],
        stdin=slave,
        stdout=subprocess.PIPE,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    shown = b""
    while b"Secret: " not in shown:
        shown += os.read(master, 1000)
    os.write(master, b"hush-hush\n")
    out, _ = process.communicate(timeout=60)
    shown += _read_rest(master)
    assert process.returncode == 0
    assert opened(control.secret_key, out.decode().strip()) == b"hush-hush"
    assert b"hush" not in shown


def _read_rest(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 10_000)
    except OSError:
        return b""  # Linux says so when the other side is closed.


def test_without_pynacl_it_is_told_what_to_install() -> None:
    program = (
        "import sys; sys.modules['nacl.public'] = None\n"
        "from innkeeper import seal\n"
        "try: seal('public:v1:x', 'hush')\n"
        "except Exception as error: print(error.hint)"
    )
    ran: Any = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "pip install 'innkeeper[seal]'" in ran.stdout, ran.stderr
