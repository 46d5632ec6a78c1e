"""The pure parts of instant boot: addresses, the next act, the pace, the XML."""

import pytest

from innkeeper.remote_source import parse_remote_source
from tasks.base_image import Pace
from tasks.hydration_policy import Act, Look, decide
from tasks.prefetch import is_condemning
from virt.remote_xml import DiskLook, look_at_disk, with_local_disk

NOTHING = Look(
    is_held=False,
    is_cached=False,
    is_fetching=False,
    is_condemned=False,
    waits_for_disk=False,
    gives_up=False,
    is_fresh=False,
)


@pytest.mark.parametrize(
    ("url", "plain"),
    [
        ("http://images.example/a/b.raw", "http://images.example:80/a/b.raw"),
        ("https://10.0.0.1:8443/x", "https://10.0.0.1:8443/x"),
        ("nbd://store", "nbd://store:10809"),
        ("nbd://store:1/disk-7", "nbd://store:1/disk-7"),
    ],
)
def test_a_plain_address_has_one_form(url: str, plain: str) -> None:
    assert parse_remote_source(url).url == plain


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://h/x",
        "http://user:secret@h/x",
        "http://h/x?sig=secret",
        "http://h/x#secret",
        "http://h/x?",
        "http://h/../x",
        "http://h/a/./x",
        "http://h/%2e%2e/x",
        "http://h/a b",
        "http://h//x",
        "http://[::1]/x",
        "http://h:99999/x",
        "http:///x",
        "nbd://h/x;y",
        'http://h/"}',
    ],
)
def test_an_address_that_may_mean_two_things_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ValueError, match="it") as refused:
        parse_remote_source(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "prefix", "is_below"),
    [
        ("http://h/a/b", "http://h", True),
        ("http://h/a/b", "http://h/a", True),
        ("http://h/a/b", "http://H:80/a/", True),
        ("http://h/a/b", "http://h/a/b", True),
        ("http://h/ab", "http://h/a", False),
        ("http://h/a/b", "https://h/a", False),
        ("http://h/a/b", "http://h:8080/a", False),
        ("http://h.evil/a", "http://h", False),
    ],
)
def test_a_prefix_covers_whole_names_only(url: str, prefix: str, is_below: bool) -> None:
    assert parse_remote_source(url).is_below(parse_remote_source(prefix)) is is_below


@pytest.mark.parametrize(
    ("seen", "act"),
    [
        ({}, Act.FETCH),
        ({"is_held": True, "is_condemned": True}, Act.WAIT),
        ({"is_fetching": True}, Act.WAIT),
        ({"is_fresh": True}, Act.WAIT),
        ({"is_cached": True}, Act.HYDRATE),
        ({"is_cached": True, "is_fresh": True}, Act.WAIT),
        ({"is_cached": True, "is_fresh": True, "waits_for_disk": True}, Act.HYDRATE),
        ({"is_condemned": True, "is_fresh": True}, Act.HYDRATE),
        ({"waits_for_disk": True}, Act.RESUME),
        ({"waits_for_disk": True, "is_fetching": True, "is_fresh": True}, Act.RESUME),
        ({"waits_for_disk": True, "gives_up": True}, Act.HYDRATE),
        ({"waits_for_disk": True, "gives_up": True, "is_cached": True}, Act.HYDRATE),
    ],
)
def test_the_next_act_follows_from_what_is_seen(seen: dict[str, bool], act: Act) -> None:
    assert decide(Look(**{**vars_of(NOTHING), **seen})) is act


def vars_of(look: Look) -> dict[str, bool]:
    return dict(vars(look))


@pytest.mark.parametrize(
    ("code", "condemns"),
    [
        ("digest_mismatch", True),
        ("format_mismatch", True),
        ("image_too_large", True),
        ("fetch_failed", False),
        ("source_refused", False),
        ("source_lost", False),
        ("cancelled", False),
        ("host_unsuitable", False),
    ],
)
def test_only_wrong_bytes_condemn_an_image(code: str, condemns: bool) -> None:
    assert is_condemning({"code": code, "message": "…"}) is condemns


def test_a_transfer_keeps_its_pace_from_where_it_was_taken_up() -> None:
    now = 100.0
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        nonlocal now
        slept.append(seconds)
        now += seconds

    pace = Pace(10, clock=lambda: now, sleep=sleep)
    pace.keep(50 << 20)
    assert slept == []
    for mib in range(51, 71):
        pace.keep(mib << 20)
    assert now - 100.0 == pytest.approx(2.0)
    Pace(0, clock=lambda: now, sleep=sleep).keep(1 << 40)
    assert now - 100.0 == pytest.approx(2.0)


DOMAIN = """
<domain><devices>
  <disk type='file'>
    <source file='/p/root.instant.qcow2'/>
    <backingStore type='network'><source protocol='http' name='x'/><backingStore/></backingStore>
    <mirror type='file' file='/p/root.qcow2' job='copy' ready='yes'/>
    <target dev='vda'/>
  </disk>
  <disk type='file'><source file='/p/other'/><target dev='vdb'/></disk>
</devices></domain>
"""


def test_the_domain_says_which_file_is_the_disk() -> None:
    assert look_at_disk(DOMAIN, "vda") == DiskLook(
        path="/p/root.instant.qcow2",
        has_remote_backing=True,
        mirror_path="/p/root.qcow2",
        is_mirror_ready=True,
    )
    assert look_at_disk(DOMAIN, "vdb") == DiskLook(path="/p/other", has_remote_backing=False)
    with pytest.raises(ValueError, match="vdc"):
        look_at_disk(DOMAIN, "vdc")


def test_a_hydrated_disk_stands_on_the_cached_image_alone() -> None:
    changed = with_local_disk(DOMAIN, "vda", path="/p/root.qcow2", backing_path="/c/base.raw")
    assert "protocol" not in changed
    assert "/c/base.raw" in changed
    assert look_at_disk(changed, "vda").path == "/p/root.qcow2"
    assert look_at_disk(changed, "vdb").path == "/p/other"
