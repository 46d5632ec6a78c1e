"""One fetch for everybody who wants an image, and little fetched twice after a kill.

``INNKEEPER_TEST_FETCH_MIB=500`` makes the killed fetch as large as in the documentation; ``-s``
prints the figures.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.virt.image_server import Server
from tests.waiting import PATIENCE_S, wait_until

MIB = 1 << 20
ROOT = Path(__file__).parents[2]
FETCH_MIB = int(os.environ.get("INNKEEPER_TEST_FETCH_MIB", "64"))

_FETCH = """
import sys, threading
from pathlib import Path
from virt.images import ImageCache
root, url, digest, count = sys.argv[1:]
store = ImageCache(Path(root), allowed_file_roots=(), max_bytes=1 << 40)
fetched = []
def fetch():
    fetched.append(store.ensure(url, digest, "raw").was_fetched)
threads = [threading.Thread(target=fetch) for _ in range(int(count))]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(len(fetched), sum(fetched))
"""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def fetch(root: Path, url: str, digest: str, count: int = 1) -> "subprocess.Popen[str]":
    argv = [sys.executable, "-c", _FETCH, str(root), url, digest, str(count)]
    return subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_twenty_at_once_fetch_once(tmp_path: Path, server: Server) -> None:
    """Four processes with five threads each; the addresses differ as signed ones do."""
    image = b"\0" + os.urandom(4 * MIB)
    digest = hashlib.sha256(image).hexdigest()
    server.files["/a"] = image
    server.pause_s = 0.01
    running = [
        fetch(tmp_path / "cache", server.url(f"/a?signature={number}"), digest, 5)
        for number in range(4)
    ]
    said = [process.communicate(timeout=4 * PATIENCE_S)[0].split() for process in running]
    assert sum(int(count) for count, _ in said) == 20
    assert sum(int(fetched) for _, fetched in said) == 1
    assert len(server.requests) == 1
    assert server.sent_bytes == len(image)


def test_a_fetch_killed_half_way_repeats_little(tmp_path: Path, server: Server) -> None:
    image = b"\0" + os.urandom(FETCH_MIB * MIB)
    digest = hashlib.sha256(image).hexdigest()
    server.files["/a"] = image
    # About 60 MiB/s: were it faster, what is on the way would be a matter of the kernel's buffers.
    server.pause_s = 0.001
    first = fetch(tmp_path / "cache", server.url("/a"), digest)
    wait_until(
        lambda: server.sent_bytes >= len(image) // 2,
        what="half of it was sent",
        timeout_s=PATIENCE_S + FETCH_MIB,
    )
    first.kill()
    first.wait()
    partial = tmp_path / "cache" / ".partial" / digest
    had = partial.stat().st_size
    assert had < len(image)
    said, _ = fetch(tmp_path / "cache", server.url("/a"), digest).communicate(
        timeout=4 * PATIENCE_S + FETCH_MIB
    )
    assert said.split() == ["1", "1"]
    [_, (_, wanted)] = server.requests
    assert wanted == f"bytes={had - 1}-"
    # The server goes on sending into a dead connection for a moment: all of that counts too.
    again = server.sent_bytes - len(image)
    print(
        json.dumps(
            {
                "size_bytes": len(image),
                "kept_bytes": had,
                "sent_again_bytes": again,
                "sent_again_percent": round(100 * again / len(image), 2),
            }
        )
    )
    assert again <= len(image) * 0.05
