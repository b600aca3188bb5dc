"""Which addresses may be connected to: none that is not public, in any form it can be written in."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import ssl

import pytest

from remit_broker.adapters.outbound import MAX_ANSWER, Forbidden, Outbound, resolve, tls
from remit_broker.core.addresses import address, may_connect, network

INSIDE = [
    "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "100.100.100.200", "192.0.0.1", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1",
    "239.255.255.250", "240.0.0.1", "255.255.255.255",
    "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "2001:db8::1", "100::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "::ffff:0:1", "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe", "64:ff9b:1::a00:1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:0:a00:1::1",
    "fec0::1", "feff::1", "5f00::1", "3fff::1", "192.88.99.1",
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


NO_URLS = [
    "ftp://chat.example/",
    "https://a@chat.example/",
    "https://chät.example/",
    "file:///etc/passwd",
    "chat.example",
    "https://[::1",
]


@pytest.mark.parametrize("url", NO_URLS)
async def test_what_is_no_plain_url_is_not_sent_to(url: str) -> None:
    with pytest.raises((Forbidden, OSError, ValueError)):
        await Outbound().get(url)


async def served(answer: bytes) -> tuple[asyncio.Server, str]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return server, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


HERE = [network("127.0.0.1/32")]


async def test_an_answer_that_is_packed_is_not_unpacked() -> None:
    """A few kilobytes that would become a gigabyte."""
    bomb = gzip.compress(b"0" * 10_000_000)
    for coding in (b"gzip", b"deflate", b"br", b"gzip, gzip"):
        head = b"HTTP/1.1 200 OK\r\nContent-Encoding: %b\r\nContent-Length: %d\r\n\r\n" % (coding, len(bomb))
        server, url = await served(head + bomb)
        async with server:
            with pytest.raises(Forbidden, match="packed"):
                await Outbound(HERE).get(url)


async def test_an_answer_that_is_too_large_is_none() -> None:
    server, url = await served(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * (MAX_ANSWER + 1))
    async with server:
        with pytest.raises(Forbidden, match="more than"):
            await Outbound(HERE).get(url)


async def test_a_redirection_is_not_followed() -> None:
    server, url = await served(b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n")
    async with server:
        with pytest.raises(Forbidden, match="302"):
            await Outbound(HERE).get(url)


async def test_the_certificates_are_read_once() -> None:
    """Forty milliseconds in which nothing else runs: not for each request."""
    assert tls() is tls()
    assert tls().verify_mode == ssl.CERT_REQUIRED and tls().check_hostname
