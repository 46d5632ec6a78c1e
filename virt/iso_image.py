"""ISO 9660 images in memory: the same files give the same bytes, on every host, at any time."""

import time
from collections.abc import Mapping
from functools import cache
from io import BytesIO
from types import ModuleType, SimpleNamespace
from typing import Any

BUILT_AT = 0


def build_iso(label: str, files: Mapping[str, bytes]) -> bytes:
    """Return an ISO 9660 image with Rock Ridge and Joliet names, readable by root alone.

    Args:
        label: of the volume.
        files: bytes by path, ``openstack/latest/user_data``; directories come by themselves.
    """
    iso = _pycdlib().PyCdlib()
    iso.new(interchange_level=1, vol_ident=label, joliet=3, rock_ridge="1.09", sys_ident="LINUX")
    directories: dict[str, str] = {"": ""}
    try:
        for number, path in enumerate(sorted(files)):
            parent, _, name = path.rpartition("/")
            place = _ensure_directory(iso, directories, parent)
            iso.add_fp(
                BytesIO(files[path]),
                len(files[path]),
                f"{place}/F{number:04}.;1",
                rr_name=name,
                joliet_path=f"/{path}",
                file_mode=0o100400,
            )
        image = BytesIO()
        iso.write_fp(image)
        return image.getvalue()
    finally:
        iso.close()


def _ensure_directory(iso: Any, known: dict[str, str], path: str) -> str:
    """Make a directory and those above it; return where it is by its ISO 9660 name."""
    if path in known:
        return known[path]
    parent, _, name = path.rpartition("/")
    place = f"{_ensure_directory(iso, known, parent)}/D{len(known):04}"
    iso.add_directory(place, rr_name=name, joliet_path=f"/{path}", file_mode=0o040500)
    known[path] = place
    return place


@cache
def _pycdlib() -> ModuleType:
    """Return pycdlib with its clock stopped: it offers no way to say which dates it writes."""
    import pycdlib
    from pycdlib import dates, headervd, utils
    from pycdlib import pycdlib as implementation

    stopped = SimpleNamespace(
        time=lambda: BUILT_AT,
        localtime=time.gmtime,
        gmtime=time.gmtime,
        strftime=time.strftime,
        strptime=time.strptime,
        struct_time=time.struct_time,
    )
    for module in (dates, headervd, implementation, utils):
        vars(module)["time"] = stopped
    return pycdlib
