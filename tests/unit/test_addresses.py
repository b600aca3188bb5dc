"""Which addresses may be connected to: none that is not public, in any form it can be written in."""

from __future__ import annotations

import pytest

from remit_broker.adapters.outbound import Forbidden, Outbound, resolve
from remit_broker.core.addresses import address, may_connect, network

INSIDE = [
    "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "100.100.100.200", "192.0.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1",
    "239.255.255.250", "240.0.0.1", "255.255.255.255",
    "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1", "100::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "::ffff:0:1", "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe", "64:ff9b:1::a00:1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:0:a00:1::1",
    "2001:0:4136:e378:8000:63bf:80ff:fffe", "2a00:1450::5efe:a00:1", "2a00:1450::200:5efe:7f00:1",
]  # fmt: skip
OUTSIDE = ["1.1.1.1", "8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "2a00:1450:4001:80e::200e", "::ffff:8.8.8.8"]


@pytest.mark.parametrize("text", INSIDE)
def test_an_address_that_is_not_public_is_refused(text: str) -> None:
    assert not may_connect(address(text))


@pytest.mark.parametrize("text", OUTSIDE)
def test_a_public_address_is_not(text: str) -> None:
    assert may_connect(address(text))


def test_a_network_that_is_named_is_allowed_and_nothing_beside_it() -> None:
    allowed = [network("10.1.0.0/16"), network("fd00:1::/32"), network("127.0.0.1")]
    for text in ("10.1.2.3", "fd00:1::5", "127.0.0.1"):
        assert may_connect(address(text), allowed)
    for text in ("10.2.0.1", "127.0.0.2", "::1", "fd00:2::1", "::ffff:10.2.0.1"):
        assert not may_connect(address(text), allowed)


@pytest.mark.parametrize(
    "host",
    ["localhost", "127.1", "0x7f.0.0.1", "2130706433", "017700000001", "0", "::1", "::ffff:127.0.0.1", "127.0.0.1"],
)
async def test_nothing_is_sent_to_an_address_that_is_not_public(host: str) -> None:
    shown = f"[{host}]" if ":" in host else host
    with pytest.raises((Forbidden, OSError)):
        await Outbound().post(f"https://{shown}:1/hook", b"{}", {})
    try:
        found = await resolve(host, 1)
    except OSError:
        return  # this system takes it for no address at all
    assert all(not may_connect(address(one)) for one in found)


async def test_of_several_addresses_each_must_be_public() -> None:
    async def both(host: str, port: int) -> list[str]:
        return ["93.184.216.34", "10.0.0.1"]

    with pytest.raises(Forbidden, match=r"10\.0\.0\.1"):
        await Outbound(resolver=both).post("https://chat.example/hook", b"{}", {})


async def test_a_public_host_is_not_spoken_to_in_plain_text() -> None:
    async def public(host: str, port: int) -> list[str]:
        return ["93.184.216.34"]

    with pytest.raises(Forbidden, match="by http"):
        await Outbound(resolver=public).post("http://chat.example/hook", b"{}", {})
