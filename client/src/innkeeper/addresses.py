"""Addresses as people may see them: without what lets somebody in.

A signed address carries its permission in the query, others a name and a password before the
host. Neither may reach a message, a log, a row that is shown or Flower.
"""

import re

_ADDRESS = re.compile(
    r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)"
    r"(?P<user>[^\s/?#\"'<>]*@)?"
    r"(?P<place>[^\s?#\"'<>]*)"
    r"(?P<query>\?(<redacted>|[^\s#\"'<>]*))?"
    r"(?P<fragment>#[^\s\"'<>]*)?"
)

_AUTHORITY = re.compile(r"(.*@)?([^:@]*|\[[^\]@]*\])(:[0-9]*)?")


def show_address(address: str) -> str:
    """Return an address without user, password, query and fragment.

    Args:
        address: an URL, or a path, which has nothing to hide.

    Example:
        >>> show_address("https://me:pw@images.example/a.qcow2?X-Amz-Signature=1f")
        'https://***@images.example/a.qcow2?<redacted>'
    """
    scheme, mark, rest = address.partition("://")
    if not mark:
        return _printable(address)
    # All of it is one address here, whatever stands in it: no secret ends at a quote or a space.
    place, query, _ = _split(rest)
    authority, slash, path = place.partition("/")
    if not _AUTHORITY.fullmatch(authority):
        # A password with a slash that nobody escaped: better too much hidden than a part of it.
        authority, slash, path = place[: place.rfind("@") + 1], "", place[place.rfind("@") + 1 :]
    host = authority.rpartition("@")[2]
    user = "***@" if "@" in authority else ""
    return _printable(f"{scheme}://{user}{host}{slash}{path}{'?<redacted>' if query else ''}")


def hide_secrets(text: str) -> str:
    """Return a text in which every URL stands as ``show_address`` shows it."""
    return _ADDRESS.sub(_redacted, text) if "://" in text else text


def has_secret(address: str) -> bool:
    """Return whether an address carries something that ``show_address`` hides."""
    return show_address(address) != _printable(address)


def _split(rest: str) -> tuple[str, str, str]:
    before, _, fragment = rest.partition("#")
    place, mark, query = before.partition("?")
    return place, mark + query, fragment


def _redacted(found: re.Match[str]) -> str:
    user = "***@" if found["user"] else ""
    query = "?<redacted>" if found["query"] else ""
    return f"{found['scheme']}{user}{found['place']}{query}"


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)
