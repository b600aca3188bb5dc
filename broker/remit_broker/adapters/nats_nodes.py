"""The configuration of an external NATS server or cluster, to be copied to where it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from remit_broker.adapters.errors import ConfigError
from remit_broker.adapters.keyfiles import KeyFiles
from remit_broker.adapters.nats_config import Cluster, ServerConfig, Sync, render
from remit_broker.adapters.nats_server import public_keys

CLIENTS: Final = 4222
ROUTES: Final = 6222


class Node(NamedTuple):
    """One server: where clients and where the other servers reach it."""

    host: str
    port: int = CLIENTS
    routes: int = ROUTES

    @property
    def url(self) -> str:
        """For ``bus.url``."""
        return f"nats://{self.host}:{self.port}"


def parse_nodes(text: str) -> tuple[Node, ...]:
    """``HOST[:PORT[:ROUTE_PORT]],…`` in the order of the nodes. Raises :class:`ConfigError`."""
    nodes = tuple(_node(part.strip()) for part in text.split(","))
    if len({(node.host, node.port) for node in nodes}) < len(nodes):
        raise ConfigError(f"two nodes of {text!r} are one", "give each a host or port of its own")
    return nodes


def _node(text: str) -> Node:
    host, *ports = text.split(":")
    if not host or len(ports) > 2 or not all(port.isdecimal() and 0 < int(port) < 65536 for port in ports):
        raise ConfigError(f"{text!r} is no node", "write HOST, HOST:PORT or HOST:PORT:ROUTE_PORT, separated by commas")
    return Node(host, *map(int, ports))


def node_config(
    keys: KeyFiles, nodes: Sequence[Node], number: int, store: str, sync: Sync, tenants: Sequence[str] = ()
) -> str:
    """``nats.conf`` of node ``number`` (from 1) as it can be given to ``nats-server -c``. Raises :class:`ConfigError`.

    ``tenants`` are those beside the default one.
    """
    if not 1 <= number <= len(nodes):
        raise ConfigError(f"there is no node {number}", f"say --node 1 to --node {len(nodes)}")
    node, alone = nodes[number - 1], len(nodes) == 1
    name = "remit" if alone else f"n{number}"
    cluster = Cluster(
        host=node.host, port=node.routes, routes=tuple(f"nats://{other.host}:{other.routes}" for other in nodes)
    )
    config = ServerConfig(
        keys=public_keys(keys, tenants),
        store_dir=store or ("nats-store" if alone else f"nats-store-{name}"),
        host=node.host,
        port=node.port,
        server_name=name,
        sync=sync,
        cluster=None if alone else cluster,
    )
    return render(config, _head(nodes, name))


def _head(nodes: Sequence[Node], name: str) -> str:
    text = f"""\
NATS server {name} for the Remit brokers with these keys. There is no secret in this file: all keys are public ones.
  nats-server -c THIS-FILE
In remit.toml of each broker, under [bus]:
  url = "{",".join(node.url for node in nodes)}"
"""
    if len(nodes) > 1:
        text += f"""\
  replicas = {3 if len(nodes) < 5 else 5}
Whoever reaches a route port ({nodes[0].routes}) is a server of this cluster: keep those ports in a network of their own, or add
`tls` with `verify: true` to the block `cluster`.
"""
    return (
        text
        + "Across machines add a block `tls`: what travels here is not encrypted otherwise, and write tls://… in bus.url.\n"
    )
