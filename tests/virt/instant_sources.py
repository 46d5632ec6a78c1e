"""Raw images on a server for guests that boot from there at once, each with bytes of its own."""

import hashlib
import subprocess
import tempfile
import uuid
from pathlib import Path
from typing import Any

from lab.handle import Lab
from lab.network import Subnet
from lab.range_server import RangeServer


class InstantSources:
    """One server on the lab's own address, whose image is new with every offer."""

    def __init__(self) -> None:
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self.server: RangeServer | None = None

    def offer(self, lab: Lab, *, linux: bool = False) -> dict[str, Any]:
        """Serve an image that no cache has yet; return the fields of a spawn that boots from it."""
        self.stop()
        self._directory = tempfile.TemporaryDirectory(prefix="innkeeper-source-", dir="/var/tmp")
        path = Path(self._directory.name) / f"{uuid.uuid4().hex}.raw"
        images = lab.description.images
        make_raw(Path(images.guest if linux else images.boot), path)
        self.server = RangeServer(path, Subnet(lab.description.subnet).services_address, port=80)
        self.server.start()
        return {
            "image": self.server.url,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "image_format": "raw",
            "delivery": "instant",
        }

    def stop(self) -> None:
        """Take the server away."""
        if self.server is not None:
            self.server.stop()
            self.server = None
        if self._directory is not None:
            self._directory.cleanup()
            self._directory = None


def make_raw(image: Path, path: Path) -> None:
    """Make a raw image of a qcow2 one, with a last sector like no other's."""
    subprocess.run(
        ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(image), str(path)], check=True
    )
    with path.open("ab") as file:
        file.write(uuid.uuid4().bytes * 32)
