"""What stands beside a cached image, in a JSON file of its own: what was found out about it."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4


@dataclass(frozen=True)
class ImageFacts:
    """What was found out about an image.

    Args:
        size_bytes: of the file; another size means that it is damaged.
        virtual_size_bytes: of the disk a guest would see.
        rules_version: of the rules it was judged by.
        sha512: of its bytes, once somebody has asked for it.
    """

    size_bytes: int
    virtual_size_bytes: int
    rules_version: int
    sha512: str | None = None


def facts_path(image: Path) -> Path:
    """Return where an image's facts stand."""
    return image.with_name(f"{image.name}.json")


def read_facts(image: Path) -> ImageFacts | None:
    """Return an image's facts; None when there are none that can be read."""
    said = read_json(facts_path(image)) or {}
    sha512 = said.pop("sha512", None)
    if set(said) != {"size_bytes", "virtual_size_bytes", "rules_version"}:
        return None
    if not all(isinstance(value, int) for value in said.values()):
        return None
    return ImageFacts(**said, sha512=sha512 if isinstance(sha512, str) else None)  # type: ignore[arg-type]


def write_facts(image: Path, facts: ImageFacts) -> None:
    """Write an image's facts."""
    write_json(facts_path(image), asdict(facts))


def read_json(path: Path) -> dict[str, object] | None:
    """Return the JSON object in a file; None when there is none."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return said if isinstance(said, dict) else None


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Replace a file by a JSON object, at once for its readers."""
    own = path.with_name(f".{path.name}.{uuid4().hex}")
    try:
        own.write_text(json.dumps(value), encoding="utf-8")
        os.replace(own, path)
    except BaseException:
        own.unlink(missing_ok=True)
        raise
