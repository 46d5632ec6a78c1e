"""One Redis and one stub of the control worker for all tests of the client."""

import socket
import threading
from collections.abc import Iterator

import pytest
from control_stub import Control
from private_redis import PrivateRedis

from innkeeper import Innkeeper


@pytest.fixture(scope="session")
def private_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRedis]:
    server = PrivateRedis(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def control(private_redis: PrivateRedis) -> Iterator[Control]:
    stub = Control(private_redis.broker_url, private_redis.result_url)
    with stub.running():
        yield stub


@pytest.fixture
def inn(control: Control, private_redis: PrivateRedis) -> Iterator[Innkeeper]:
    with Innkeeper(
        private_redis.broker_url, private_redis.result_url, requested_by="tests", timeout_s=30
    ) as client:
        yield client


@pytest.fixture
def black_hole() -> Iterator[str]:
    """The address of something that takes every connection and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(50)
        taken: list[socket.socket] = []

        def take() -> None:
            while True:
                try:
                    taken.append(listener.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        yield f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(timeout=5)
        for connection in taken:
            connection.close()
