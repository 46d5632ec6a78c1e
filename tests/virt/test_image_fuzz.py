"""Whatever bytes come, the judges answer, in time, and never take what qemu-img would not."""

import random
import subprocess
import time
from functools import cache as cached
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from innkeeper.errors import ImageError
from virt.cage import get_cage
from virt.image_magic import name_first_bytes
from virt.images import ImageCache
from virt.inspect_image import StreamJudge
from virt.qemu_img import ImageFormat, qemu_img_info

MIB = 1 << 20
KIB = 1 << 10
LIMIT_BYTES = 64 * MIB
SLOWEST_S = 5.0
MAGICS = (
    *(b"QFI\xfb\x00\x00\x00\x03", b"QFI\xfb\x00\x00\x00\x02", b"KDMV", b"COWD", b"QED\x00"),
    *(b"vhdxfile", b"conectix", b"LUKS\xba\xbe\x00\x01", b"# Disk DescriptorFile\n", b"\x1f\x8b"),
)


@cached
def seeds() -> tuple[bytes, ...]:
    """Valid images of several kinds, small enough to be changed and judged many times."""
    import tempfile

    made = []
    with tempfile.TemporaryDirectory() as directory:
        raw, image = Path(directory) / "raw", Path(directory) / "image"
        raw.write_bytes(bytes(range(256)) * 256 + bytes(64 * KIB))
        for options in ("compat=1.1", "compat=0.10", "compat=1.1,cluster_size=4096"):
            argv = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-o", options, raw, image]
            subprocess.run(argv, check=True)
            made.append(image.read_bytes())
        for other in ("vmdk", "vdi", "vhdx", "qed", "vpc"):
            subprocess.run(["qemu-img", "create", "-q", "-f", other, image, "4M"], check=True)
            made.append(image.read_bytes()[: 256 * KIB])
            image.unlink()
    return tuple(made)


def judge(data: bytes, declared: ImageFormat, piece_bytes: int) -> int | None:
    """Return the size that the judges of the stream see; None when they refuse it."""
    stream = StreamJudge(declared, LIMIT_BYTES)
    begun = time.monotonic()
    try:
        stream.expect(len(data))
        for offset in range(0, len(data), piece_bytes):
            stream.feed(data[offset : offset + piece_bytes])
        stream.finish()
    except ImageError:
        return None
    finally:
        assert time.monotonic() - begun < SLOWEST_S
    return stream.virtual_size_bytes


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    magic=st.sampled_from((b"", *MAGICS)),
    data=st.binary(max_size=2 * KIB),
    declared=st.sampled_from(("qcow2", "raw")),
    piece_bytes=st.sampled_from((1, 7, 512, 64 * KIB)),
)
def test_any_bytes_are_answered(
    magic: bytes, data: bytes, declared: ImageFormat, piece_bytes: int
) -> None:
    size = judge(magic + data, declared, piece_bytes)
    if declared == "raw":
        assert size is None or size == len(magic + data)
        if name_first_bytes(magic + data)[0] == "disk":
            assert size is None


def mutated(random_: random.Random) -> bytes:
    """Change a valid image: its header most of all, for there the lies are."""
    data = bytearray(random_.choice(seeds()))
    for _ in range(random_.choice((1, 1, 2, 4, 16))):
        where = random_.choice((104, 512, 4096, len(data)))
        offset = random_.randrange(min(where, len(data)))
        kind = random_.randrange(4)
        if kind == 0:
            data[offset] ^= 1 << random_.randrange(8)
        elif kind == 1:
            data[offset] = random_.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif kind == 2:
            number = random_.choice((0, 1, 1 << 31, 1 << 63, (1 << 64) - 1, len(data)))
            data[offset : offset + 8] = number.to_bytes(8, "big")
        else:
            del data[random_.randrange(len(data)) :]
            data = data or bytearray(b"\0")
    return bytes(data)


@pytest.mark.parametrize("seed", range(6))
def test_mutated_images_are_answered_whatever_the_pieces(seed: int) -> None:
    random_ = random.Random(seed)
    for _ in range(40):
        data = mutated(random_)
        for declared in ("qcow2", "raw"):
            answers = {judge(data, declared, piece) for piece in (64 * KIB, 4096 + 1)}  # type: ignore[arg-type]
            assert len(answers) == 1


@pytest.mark.parametrize("seed", range(100, 103))
def test_the_cache_takes_only_what_qemu_img_takes(seed: int, tmp_path: Path) -> None:
    """The whole way, on real files: refused with a typed error, or agreed on by everybody."""
    store = ImageCache(tmp_path / "cache", allowed_file_roots=(tmp_path,), max_bytes=LIMIT_BYTES)
    random_ = random.Random(seed)
    image = tmp_path / "image"
    taken = 0
    for _ in range(25):
        image.write_bytes(mutated(random_))
        declared: ImageFormat = random_.choice(("qcow2", "qcow2", "raw"))
        begun = time.monotonic()
        try:
            cached_image = store.ensure(
                str(image), None, declared, max_virtual_size_bytes=LIMIT_BYTES
            )
        except ImageError:
            continue
        finally:
            assert time.monotonic() - begun < 2 * SLOWEST_S
        taken += 1
        info = qemu_img_info(cached_image.path, declared, cage=get_cage())
        assert info.format == declared
        assert info.virtual_size_bytes == cached_image.virtual_size_bytes <= LIMIT_BYTES
        assert (info.backing_path, info.data_file) == (None, None)
        check = subprocess.run(
            ["qemu-img", "check", "-q", "-f", "qcow2", cached_image.path], capture_output=True
        )
        assert declared == "raw" or check.returncode in (0, 3)
        store.remove(cached_image.digest)
    # Some changes do no harm: a fuzz in which nothing passes would show nothing.
    assert taken > 0
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_file()]
    assert list((tmp_path / "cache" / ".partial").iterdir()) == []
