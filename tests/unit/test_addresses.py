"""What of an address people may see."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from innkeeper import requests
from innkeeper.addresses import has_secret, hide_secrets, show_address
from innkeeper.guest_spec import InstanceSpec
from innkeeper.requests import Asker


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://me:pw@h/a.qcow2?X=1#f", "https://***@h/a.qcow2?<redacted>"),
        ("https://h/a?<redacted>", "https://h/a?<redacted>"),
        ("http://h/a@b", "http://h/a@b"),
        ("http://[::1]:80/a", "http://[::1]:80/a"),
        ("http://me:p/w@h/a", "http://***@h/a"),
        ("http://me:p@w@h/a", "http://***@h/a"),
        ("http://h?x@y", "http://h?<redacted>"),
        ("http://h/a?b c\"d'e", "http://h/a?<redacted>"),
        ("/var/images/a?b", "/var/images/a?b"),
        ("file:///a", "file:///a"),
        ("http://h/a\nb", "http://h/a?b"),
    ],
)
def test_what_is_shown(address: str, shown: str) -> None:
    assert show_address(address) == shown
    assert show_address(shown) == shown or "\n" in address


def test_text_around_addresses_stays() -> None:
    text = "it redirects from http://a:b@c/d?e=f to https://g/h, said the server"
    assert hide_secrets(text) == (
        "it redirects from http://***@c/d?<redacted> to https://g/h, said the server"
    )
    assert hide_secrets(hide_secrets(text)) == hide_secrets(text)
    assert has_secret("http://a/b?c")
    assert not has_secret("http://a/b")


secrets = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=20)


@given(secret=secrets, path=secrets)
def test_no_secret_passes(secret: str, path: str) -> None:
    marked = f"S{secret}S"
    for address in (
        f"https://host.example/{path}?sig={marked}&x=1",
        f"https://u:{marked}@host.example/{path}",
        f"https://{marked}@host.example/{path}#{marked}",
    ):
        kept = f"https://host.example/{path}"
        if marked in kept or marked in "<redacted>":
            continue
        assert marked not in show_address(address)
        assert marked not in hide_secrets(f"the image {address} is gone")


def test_flower_sees_the_name_alone() -> None:
    for image in ("https://me:5ecret@h/a/b.qcow2?sig=5ecret/x", "/a/b.qcow2"):
        message = requests.spawn(InstanceSpec(name="a", image=image), Asker("me"))
        assert "image=b.qcow2 " in message.shown_as
        assert "5ecret" not in message.shown_as
