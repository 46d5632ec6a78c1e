"""The peer server: exactly the sound files of its caches, and nothing else."""

import hashlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tasks.image_serving import find_served
from tests.images.conftest import CacheHost
from virt.image_files import condemn
from workers.image_server import ImageServer

CONTENT = bytes(range(256)) * 4096
DIGEST = hashlib.sha256(CONTENT).hexdigest()
NAME = f"{DIGEST}.qcow2"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    (tmp_path / "secret").write_text("not for peers")
    (tmp_path / "images" / NAME).write_bytes(CONTENT)
    (tmp_path / "images" / f"{'1' * 64}.qcow2").symlink_to(tmp_path / "secret")
    return tmp_path / "images"


@pytest.fixture
def server(root: Path) -> Iterator[ImageServer]:
    def find(name: str) -> Path | None:
        path = root / name
        return path if path.is_symlink() or path.exists() else None

    running = ImageServer("127.0.0.1", 0, connections=1, find_image=find)
    running.start()
    yield running
    running.close()


def get(server: ImageServer, path: str, method: str = "GET", **headers: str) -> httpx.Response:
    return httpx.request(method, f"http://127.0.0.1:{server.port}{path}", headers=headers)


def test_a_whole_image(server: ImageServer) -> None:
    answer = get(server, f"/images/{NAME}")
    assert (answer.status_code, answer.content) == (200, CONTENT)
    assert answer.headers["ETag"] == f'"{NAME}"'
    head = get(server, f"/images/{NAME}", "HEAD")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Length"] == str(len(CONTENT))


@pytest.mark.parametrize(
    ("wanted", "first", "end"),
    [("bytes=10-", 10, len(CONTENT)), ("bytes=0-9", 0, 10), ("bytes=5-999999999", 5, len(CONTENT))],
)
def test_a_part_of_it(server: ImageServer, wanted: str, first: int, end: int) -> None:
    answer = get(server, f"/images/{NAME}", Range=wanted, **{"If-Range": f'"{NAME}"'})
    assert (answer.status_code, answer.content) == (206, CONTENT[first:end])
    assert answer.headers["Content-Range"] == f"bytes {first}-{end - 1}/{len(CONTENT)}"


def test_another_version_gets_the_whole_and_bytes_beyond_the_end_are_refused(
    server: ImageServer,
) -> None:
    other = get(server, f"/images/{NAME}", Range="bytes=10-", **{"If-Range": '"other"'})
    assert (other.status_code, len(other.content)) == (200, len(CONTENT))
    assert get(server, f"/images/{NAME}", Range=f"bytes={len(CONTENT)}-").status_code == 416


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/images/",
        f"/images/{DIGEST}",
        f"/images/{NAME}/",
        f"/images/{NAME}?x=1",
        f"/images/{NAME}.json",
        f"/images/{DIGEST.upper()}.qcow2",
        "/images/../secret",
        "/images/..%2fsecret",
        f"/images/{'0' * 64}.qcow2",
        f"/images/{'1' * 64}.qcow2",
        f"/images/{DIGEST}.qcow2%00",
    ],
)
def test_nothing_else_is_there(server: ImageServer, path: str) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as raw:
        # A client library would tidy the path up.
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"secret" not in answer


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_nothing_can_be_written(server: ImageServer, root: Path, method: str) -> None:
    assert get(server, f"/images/{NAME}", method).status_code == 501
    assert (root / NAME).read_bytes() == CONTENT


def test_one_too_many_is_sent_elsewhere(server: ImageServer, root: Path) -> None:
    large = f"{'2' * 64}.raw"
    (root / large).write_bytes(bytes(32 << 20))
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as slow:
        slow.sendall(f"GET /images/{large} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert slow.recv(12) == b"HTTP/1.1 200"
        assert get(server, f"/images/{NAME}").status_code == 503
    ended = threading.Event()
    for _ in range(100):
        if get(server, f"/images/{NAME}").status_code == 200:
            ended.set()
            break
    assert ended.is_set(), "the slot is free again when the slow one has gone"


def test_only_sound_files_of_the_caches_are_served(host: CacheHost) -> None:
    source, digest = host.make_image()
    name, pools = f"{digest}.qcow2", [host.pool]
    path = host.pool.images.path_for(digest, "qcow2")
    path.write_bytes(source.read_bytes())
    assert find_served(pools, name) is None, "nobody has judged it here"
    path.unlink()
    host.fill(source, digest)
    assert find_served(pools, name) == path
    for other in (f"{digest}.raw", f"{name}.json", f"../images/{name}", digest, ""):
        assert find_served(pools, other) is None
    condemn(path)
    assert find_served(pools, name) is None
