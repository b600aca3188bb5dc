"""Which addresses a broker may connect to when somebody's configuration or an answer names a host. Pure.

What is not public is refused: loopback, private, link-local (with it the metadata services of clouds), shared, multicast,
unspecified and reserved ranges (IANA special-purpose registries), and every IPv6 form that carries an IPv4 address is judged by
that one too.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_TRANSLATED: Final = IPv6Network("64:ff9b::/96")
_LOCAL_TRANSLATED: Final = IPv6Network("64:ff9b:1::/48")
_COMPATIBLE: Final = IPv6Network("::/96")
_BESIDE: Final = tuple(
    IPv6Network(text) for text in ("fec0::/10", "2001:db8::/32", "3fff::/20", "5f00::/16", "100::/64")
)
"""Not public either, though not every Python says so: site-local (RFC 3879), documentation, segment routing, discard."""
_RELAYS: Final = IPv4Network("192.88.99.0/24")
"""Of 6to4, which are no more (RFC 7526)."""
_ISATAP: Final = (0x00005EFE, 0x02005EFE)
_LOW: Final = (1 << 32) - 1


def address(text: str) -> Address:
    """An address as a resolver gives it, without a zone. Raises ValueError."""
    return ip_address(text.partition("%")[0])


def network(text: str) -> Network:
    """``10.1.0.0/16``, or one address. Raises ValueError."""
    return ip_network(text, strict=True)


def may_connect(to: Address, allowed: Iterable[Network] = ()) -> bool:
    """Whether ``to`` is public in every form that it has, or allowed by name."""
    if any(to.version == one.version and to in one for one in allowed):
        return True
    return _public(to) and all(_public(inner) for inner in embedded(to))


def is_near(to: Address) -> bool:
    """Whether ``to`` is this very machine or of its own link, where clouds have their metadata services, in any form."""
    return any(one.is_loopback or one.is_link_local or one.is_unspecified for one in (to, *embedded(to)))


def embedded(to: Address) -> tuple[IPv4Address, ...]:
    """The IPv4 addresses that an IPv6 one stands for: mapped, compatible, translated, 6to4, Teredo, ISATAP."""
    if isinstance(to, IPv4Address):
        return ()
    found: list[IPv4Address] = []
    if to.ipv4_mapped is not None:
        found.append(to.ipv4_mapped)
    if to.sixtofour is not None:
        found.append(to.sixtofour)
    if to.teredo is not None:
        found.extend(to.teredo)
    number = int(to)
    if to in _TRANSLATED or to in _COMPATIBLE or (number >> 32) & _LOW in _ISATAP:
        found.append(IPv4Address(number & _LOW))
    return tuple(found)


def _public(to: Address) -> bool:
    if isinstance(to, IPv6Address) and (to.ipv4_mapped is not None or to in _LOCAL_TRANSLATED):
        # The first is judged by what it carries, the second never leaves a network.
        return to.ipv4_mapped is not None
    if any(to in beside for beside in _BESIDE) if isinstance(to, IPv6Address) else to in _RELAYS:
        return False
    return to.is_global and not (to.is_multicast or to.is_reserved or to.is_unspecified or to.is_loopback)
