"""Broker replicas: the real wiring of ``remit_broker.app``, started in a process of its own on a simulated machine.

Left out is what no hop passes through: the embedded server, the callout's cryptography, HTTP, attached servers. Policy is a table
(:mod:`tests.simulation.rules`), detectors see nothing: what they decide is tried elsewhere, and here it would only take time.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from remit_broker import app, commons, projection
from remit_broker.adapters.json_schema import JsonSchemas
from remit_broker.adapters.keyfiles import NATS_SEEDS, DatedKey, KeyFiles
from remit_broker.config import Config, Settings
from remit_broker.core import nkey, tenant_user
from remit_broker.core.label_sources import parse_sources
from remit_broker.core.registry import Principal
from remit_broker.ports import Ports
from remit_schemas.keys import CHECKPOINT, KeySet, SigningKey
from remit_schemas.names import Kind
from tests.simulation.borders import OTHER, account_of, named
from tests.simulation.disk import Disk
from tests.simulation.loop import PROCESS, Process
from tests.simulation.rules import Rules

KEY = SigningKey.from_seed(bytes(range(32)))
KEYS = KeySet([KEY.public])
ISSUER = "https://simulated.remit"
URL = "nats://nats:4222"

_FILES = KeyFiles(
    Path("keys"),
    (DatedKey(KEY, 0, None), DatedKey(SigningKey.from_seed(b"c" * 32, CHECKPOINT), 0, None)),
    (b"k" * 32, b"q" * 32),
    "token",
    {name: nkey.seed_text(prefix, bytes([number]) * 32) for number, (name, prefix) in enumerate(NATS_SEEDS.items())},
)
ACCOUNTS = {
    _FILES.public("core"): "CORE",
    _FILES.public("bus"): "BUS",
    _FILES.public("sys"): "SYS",
    _FILES.public("auth"): "AUTH",
}


ACCOUNTS[nkey.public_of("U", tenant_user.seed_of(_FILES.seed("bus"), OTHER))] = account_of(OTHER)


@functools.cache
def seed_of(name: str) -> str:
    """The nkey seed of an agent or server."""
    return nkey.seed_text("U", name.encode().ljust(32, b"\0")[:32])


@functools.cache
def public_of(name: str) -> str:
    """Its public nkey."""
    return nkey.public_of("U", seed_of(name))


def principal(name: str, kind: Kind = "agent", tenant: str = "default") -> Principal:
    return Principal(name=name, kind=kind, nkey=public_of(named(name, tenant)), tenant=tenant)


BRINGS: Final = {"mcp/tools/read": frozenset({"untrusted", "web"}), "agent/odd/do": frozenset({"odd"})}
"""What the world's sources bring: known to whoever judges, too."""
LABELS: Final = parse_sources({name: tuple(labels) for name, labels in sorted(BRINGS.items())}, {})


class Blind:
    """Detectors that find nothing."""

    def scan(self, value: Any) -> tuple[()]:
        return ()

    def redact(self, value: Any, classes: Sequence[str]) -> tuple[Any, tuple[str, ...]]:
        return value, ()


class Witness:
    """What a replica reports of itself."""

    def __init__(self, told: Callable[[str, BaseException], None]) -> None:
        self._told = told

    def fault(self, where: str, error: BaseException) -> None:
        self._told(where, error)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


class _Nothing:
    """Stands where a part is left out that is only ever started and stopped."""

    url = "http://127.0.0.1:7480"

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    async def start(self, *_: Any) -> None:
        pass

    async def stop(self, *_: Any) -> None:
        pass


async def _no_callout(*_: Any) -> _Nothing:
    return _Nothing()


async def _left_out(*_: Any, **__: Any) -> None:
    pass


class SimBroker(app.Broker):
    """The broker as it is wired, without its edges to the outside."""

    def __init__(self, settings: Settings, told: Callable[[str, BaseException], None], rules: Rules) -> None:
        super().__init__(settings)
        self._told, self._rules = told, rules

    def _observe(self) -> Any:
        return Witness(self._told)

    def _police(self) -> Any:
        return self._rules

    async def _serve(self, server: Any) -> None:
        pass

    def _announce(self) -> None:
        pass


@contextmanager
def wired() -> Iterator[None]:
    """While a run lasts, the parts that are left out are left out."""
    schemas, blind = JsonSchemas(), Blind()

    def index(_: Path) -> Any:
        process = PROCESS.get()
        assert isinstance(process, ReplicaProcess)
        return process.disk.index()

    changes: list[tuple[Any, str, Any]] = [
        (app, "private_folder", lambda *_, **__: None),
        (app, "KeyFiles", type("Keys", (), {"open": staticmethod(lambda *_, **__: _FILES)})),
        (app, "bind_http", _Nothing),
        (app, "answer_callout", _no_callout),
        (commons, "ContentDetectors", lambda *_, **__: blind),
        (app, "require_servers", _left_out),
        (commons, "JsonSchemas", lambda: schemas),
        (projection, "SqliteIndex", type("Index", (), {"open": staticmethod(index)})),
    ]
    before = [(where, name, getattr(where, name)) for where, name, _ in changes]
    for where, name, value in changes:
        setattr(where, name, value)
    try:
        yield
    finally:
        for where, name, value in before:
            setattr(where, name, value)


class ReplicaProcess(Process):
    """The process of one replica, with the disk of its machine."""

    def __init__(self, name: str, disk: Disk) -> None:
        super().__init__(name)
        self.disk = disk


class Replica:
    """One machine that runs a broker. After a crash, :meth:`start` runs another one on the same disk."""

    def __init__(self, name: str, disk: Disk, config: Config, told: Callable[[str, str, BaseException], None]) -> None:
        self.name, self.disk = name, disk
        self.rules = Rules()
        self._config, self._told = config, told
        self.process = ReplicaProcess(name, disk)
        self.broker: SimBroker | None = None
        self.ready = False
        self.starts = 0
        self._starting: asyncio.Task[Any] | None = None

    @property
    def ports(self) -> Ports:
        """Of the broker that runs."""
        assert self.broker is not None
        return self.broker.ports

    def ports_of(self, tenant: str) -> Ports:
        """Of the broker that runs, for one tenant."""
        assert self.broker is not None
        return self.broker.ports_of(tenant)

    @property
    def serves(self) -> bool:
        """Whether it is there and can be asked."""
        return self.ready and self.process.alive and not self.process.frozen

    def start(self) -> None:
        """Run a broker, in a new process."""
        self.starts += 1
        self.ready = False
        skew = self.process.skew
        self.process = process = ReplicaProcess(self.name, self.disk)
        process.skew = skew
        process.at_death.append(self.disk.crash)
        settings = Settings(
            file=Path("remit.toml"), config=self._config, data=Path("data"), policies=Path("policies"), prices={},
            cycles=frozenset(), caps=app_caps(self._config), labels=LABELS,
        )  # fmt: skip
        self.broker = broker = SimBroker(settings, lambda where, error: self._told(self.name, where, error), self.rules)
        process.kept.append(broker)

        async def begin() -> None:
            while True:
                try:
                    await broker.__aenter__()
                except Exception as error:
                    # The supervisor of a real machine starts it again.
                    self._told(self.name, "start", error)
                    await asyncio.sleep(0.5)
                    continue
                self.ready = True
                return

        self._starting = process.run(begin())

    def kill(self) -> None:
        """SIGKILL."""
        self.ready = False
        self.process.die()

    async def stop(self, seconds: float = 30.0) -> bool:
        """SIGTERM: whether it ended in time."""
        assert self.broker is not None
        self.ready = False
        task = self.process.run(self.broker.__aexit__())
        await asyncio.wait({task}, timeout=seconds)
        self.process.die()
        return task.done()


def app_caps(config: Config) -> Any:
    """The caps of a configuration, parsed."""
    from remit_broker.core.caps import parse_caps

    return parse_caps(config.caps)
