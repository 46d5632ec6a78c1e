"""Nobody's text becomes anything but text: the document's shape is that of a harmless one."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lxml import etree

from innkeeper.errors import InvalidRequest
from tests.unit.virt.test_domain_golden import GUESTS
from virt.domain_xml import DomainSpec, RemoteSource, for_destination, render_domain

SERVER, INSTANT, DIRECT = GUESTS["server"], GUESTS["instant"], GUESTS["direct-boot"]
WHOLE = replace(
    SERVER,
    kernel=DIRECT.kernel,
    disks=(replace(INSTANT.disks[0], serial="s"), SERVER.disks[1]),
    metadata=(("key", "value"),),
)

# What has meaning in XML, in libvirt or in QEMU, among anything else.
EVIL = (
    "<qemu:commandline/>",
    "</domain>",
    "'/><x a='",
    '"/><x a="',
    "]]>",
    "<![CDATA[x]]>",
    "<!--",
    "-->",
    "<?pi?>",
    "&lt;",
    "&#60;x/&#62;",
    "&evil;",
    "<!DOCTYPE d [<!ENTITY e SYSTEM 'file:///etc/passwd'>]>",
    "xmlns:q='u'",
    "json:{}",
    ",file=/etc/passwd",
    "\u2028",
    "\x85",
    "\t",
    "\r\n",
    "\0",
    "\ufffe",
)
texts = (
    st.lists(st.sampled_from(EVIL) | st.text(max_size=8), min_size=1, max_size=5)
    .map("".join)
    .filter(bool)
)

Put = Callable[[DomainSpec, str], DomainSpec]


def put_on_disk(field: str, index: int = 0) -> Put:
    def put(spec: DomainSpec, text: str) -> DomainSpec:
        disks = list(spec.disks)
        disks[index] = replace(disks[index], **{field: text})
        return replace(spec, disks=tuple(disks))

    return put


def put_on_remote(field: str) -> Put:
    def put(spec: DomainSpec, text: str) -> DomainSpec:
        remote = spec.disks[0].remote_backing
        assert isinstance(remote, RemoteSource)
        return put_on_disk("remote_backing")(spec, replace(remote, **{field: text}))  # type: ignore[arg-type]

    return put


def put_on_nic(field: str) -> Put:
    return lambda spec, text: replace(spec, nics=(replace(spec.nics[0], **{field: text}),))


def put_on_part(part: str, field: str) -> Put:
    return lambda spec, text: replace(spec, **{part: replace(getattr(spec, part), **{field: text})})


# Where it goes in, and where it must come out again, as it was.
PLACES: dict[str, tuple[Put, str]] = {
    "name": (lambda spec, text: replace(spec, name=text), "name/text()"),
    "cpu": (lambda spec, text: replace(spec, cpu=text), "cpu/model/text()"),
    "console": (
        lambda spec, text: replace(spec, console_log_path="/" + text),
        "devices/serial/source/@path",
    ),
    "metadata-key": (
        lambda spec, text: replace(spec, metadata=((text, "value"),)),
        "metadata/*/*/@key",
    ),
    "metadata-value": (
        lambda spec, text: replace(spec, metadata=(("key", text),)),
        "metadata/*/*/text()",
    ),
    "disk-path": (
        lambda spec, text: put_on_disk("path")(spec, "/" + text),
        "devices/disk[1]/source/@file",
    ),
    "serial": (put_on_disk("serial"), "devices/disk[1]/serial/text()"),
    "remote-name": (put_on_remote("name"), "devices/disk[1]/backingStore/source/@name"),
    "remote-query": (put_on_remote("query"), "devices/disk[1]/backingStore/source/@query"),
    "remote-host": (put_on_remote("host"), "devices/disk[1]/backingStore/source/host/@name"),
    "mac": (put_on_nic("mac"), "devices/interface/mac/@address"),
    "bridge": (put_on_nic("bridge"), "devices/interface/source/@bridge"),
    "filter": (put_on_nic("filter_name"), "devices/interface/filterref/@filter"),
    "address": (
        lambda spec, text: replace(spec, nics=(replace(spec.nics[0], addresses=(text,)),)),
        "devices/interface/filterref/parameter/@value",
    ),
    "command-line": (put_on_part("kernel", "command_line"), "os/cmdline/text()"),
    "kernel": (
        lambda spec, text: put_on_part("kernel", "kernel_path")(spec, "/" + text),
        "os/kernel/text()",
    ),
    "nvram": (
        lambda spec, text: put_on_part("uefi", "nvram_path")(spec, "/" + text),
        "os/nvram/text()",
    ),
}


def structure(xml: str) -> list[tuple[str, tuple[str, ...]]]:
    """Return every node with the names of its attributes; comments and such are nodes too."""
    return [
        (str(node.tag), tuple(sorted(map(str, node.attrib))))
        for node in etree.fromstring(xml.encode()).iter()
    ]


@pytest.mark.parametrize("place", PLACES)
@settings(max_examples=60)
@given(text=texts)
def test_text_stays_text(place: str, text: str) -> None:
    put, where = PLACES[place]
    try:
        xml = render_domain(put(WHOLE, text))
    except InvalidRequest:
        return
    harmless = render_domain(put(WHOLE, "harmless"))
    assert structure(xml) == structure(harmless)
    found = etree.fromstring(xml.encode()).xpath(where)
    assert "".join(found) in (text, "/" + text)
    moved = for_destination(xml, epoch=9, operation_id=WHOLE.operation_id)
    assert structure(moved) == structure(xml)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("text", ["a\0b", "\x1b[2J", "\ufffe", "\ud800"])
def test_what_xml_cannot_hold_is_refused(place: str, text: str) -> None:
    with pytest.raises(InvalidRequest):
        render_domain(PLACES[place][0](WHOLE, text))
