"""An agent: its skills, its place on the bus, and its life from start to stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar, overload

import msgspec

from remit.caller import Scopes
from remit.client import CONNECT_SECONDS, BusClient, log
from remit.credentials import Credentials, CredentialsError, find_credentials, read_credentials
from remit.errors import Refused, as_refused, refused
from remit.plain import seconds
from remit.schema import Function, Skill, skill_of
from remit.serve import Trust, Worker
from remit.services import ask_service
from remit.task import Task, begin
from remit_schemas.budget import Budget
from remit_schemas.errors import Code, Effect
from remit_schemas.keys import KeySet
from remit_schemas.model_prices import ModelPrice, ModelPrices
from remit_schemas.names import is_principal, token

F = TypeVar("F", bound=Function)

_WAIT: Final = (Code.TARGET_UNAVAILABLE, Code.LEDGER_UNAVAILABLE, Code.RATE_LIMITED)
"""Refusals of a registration that a broker which is just starting gives."""

_UNREACHABLE: Final = 3
_REFUSED: Final = 1
_USAGE: Final = 2


class Agent:
    """A named agent. Decorate its skills with :meth:`skill`, then :meth:`run` it, or use it with ``async with``."""

    def __init__(
        self,
        name: str,
        credentials: str | os.PathLike[str] | None = None,
        bus: str | None = None,
        *,
        concurrency: int = 64,
    ) -> None:
        """``credentials`` is its file (else it is looked for, when the agent starts), ``bus`` a NATS URL other than the file's.

        ``concurrency`` is how many hops it works on at once; more are turned away.
        """
        if not is_principal(name):
            raise ValueError(f"{name!r} cannot name an agent: use [a-z0-9][a-z0-9_-]*, not remit, new or broker")
        self.name: Final = name
        self.skills: Final[dict[str, Skill]] = {}
        self._where, self._bus, self._concurrency = credentials, bus, concurrency
        self._credentials: Credentials | None = None
        self._client: BusClient | None = None
        self._worker: Worker | None = None
        self._prices = ModelPrices({})
        self._attaching: asyncio.Task[None] | None = None

    # Skills

    @overload
    def skill(self, function: F, /) -> F: ...
    @overload
    def skill(
        self, /, *, name: str | None = None, title: str = "", description: str | None = None, needs: Sequence[str] | None = None,
        effect: Effect = "unknown", models: bool = True,
    ) -> Callable[[F], F]: ...  # fmt: skip
    def skill(self, function: Any = None, /, **fields: Any) -> Any:
        """Serve ``agent/<name>/<skill>`` with an async function that takes the hop and then the arguments, by their annotations.

        ``needs`` are the scopes it may ever be given: what it calls, at most (left out: whatever its caller gives). ``effect`` is
        what a failure may have left behind: ``none`` for a skill that changes nothing itself. ``models=False``
        says that it calls no model, so that its own cost is known to be nothing. Name, title and description (else the docstring)
        are what callers and their models see.
        """
        # Types that are local to the function in which the skill is written can be named in its annotations.
        locals_ = sys._getframe(1).f_locals

        def add(function: F) -> F:
            skill = skill_of(function, locals_=locals_, **fields)
            if skill.name in self.skills:
                raise TypeError(f"{self.name} has a skill {skill.name!r} already")
            self.skills[skill.name] = skill
            return function

        return add if function is None else add(function)

    # Life

    async def start(self, patience: str | float = CONNECT_SECONDS) -> None:
        """Connect, and if there are skills register and serve them, waiting up to ``patience`` for a broker that is starting.

        Raises :class:`~remit.credentials.CredentialsError` or :class:`~remit.errors.Refused`.
        """
        client = await self.connect()
        if not self.skills or self._worker is not None:
            return
        try:
            trust = await self._attach(client, seconds(patience))
            self._worker = worker = Worker(client, trust, self.skills, self._concurrency, self._prices)
            client.on_reconnect = self._attach_again
            # INVARIANT: only with the queue group of our own name; the bus permits nothing else
            # (test_a_plain_subscription_beside_the_queue_copies_nothing).
            await client.serve(f"svc.agent.{token(self.name)}.>", worker.take, worker.control)
        except BaseException:
            await self.stop(0)
            raise

    async def stop(self, grace: str | float = 10.0) -> None:
        """Take no new calls, give those in hand ``grace`` seconds, cancel the rest, and disconnect."""
        client, self._client = self._client, None
        worker, self._worker = self._worker, None
        if self._attaching is not None:
            self._attaching.cancel()
        if client is None:
            return
        await client.serve_no_more()
        if worker is not None:
            await worker.finish(seconds(grace) if grace else 0)
        await client.close()

    async def __aenter__(self) -> Agent:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def run(self) -> None:
        """Serve until SIGINT or SIGTERM. Ends the process with the exit code of the command line where it cannot start."""
        try:
            asyncio.run(self._until_told())
        except CredentialsError as error:
            _exit(f"{self.name}: {error}", _USAGE)
        except Refused as no:
            _exit(f"{self.name}: {no}", _UNREACHABLE if no.code is Code.TARGET_UNAVAILABLE else _REFUSED)

    async def _until_told(self) -> None:
        told = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(
                NotImplementedError
            ):  # where there are no signal handlers, Ctrl-C ends asyncio.run
                loop.add_signal_handler(number, told.set)
        async with self:
            log.info("%s serves %s", self.name, ", ".join(self.skills) or "nothing")
            await told.wait()

    def task(self, grant: str) -> Task:
        """The task whose root grant (or any grant) this agent holds: ``async with agent.task(grant) as task: …``."""
        return Task(self, grant)

    async def open(
        self, token: str, *, scopes: Scopes, budget: Budget | str = "usd=0.1,calls=20", ttl: str | float = "10m",
        max_depth: int = 8, labels: Sequence[str] = ("*",),
    ) -> str:  # fmt: skip
        """The root grant of a new task for the user of ``token`` (an OIDC access token), for :meth:`task`. Needs a connection.

        Raises :class:`~remit.errors.Refused`, with ``UNAUTHENTICATED`` for a token that the broker does not accept.
        """
        link = await self.connect()
        return await begin(link, token, scopes=scopes, budget=budget, ttl=ttl, max_depth=max_depth, labels=labels)

    # Connection and registration

    async def connect(self) -> BusClient:
        """The connection, made if there is none. It serves nothing: :meth:`start` does."""
        if self._client is None:
            self._credentials = found = read_credentials(find_credentials(self.name, self._where), self.name)
            client = BusClient(found, self.name, self._bus or found.bus)
            await client.connect()
            self._client = client
        return self._client

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return self._client is not None

    @property
    def pinned(self) -> tuple[str, KeySet] | None:
        """The issuer and the keys of the credentials file, where it has them."""
        found = self._credentials
        return (found.issuer, found.keys) if found and found.issuer is not None and found.keys is not None else None

    async def _attach(self, client: BusClient, patience: float) -> Trust:
        args = {"skills": [skill.definition() for skill in self.skills.values()]}
        until = asyncio.get_running_loop().time() + patience
        pause = 0.1
        while True:
            try:
                told = await ask_service(client, ("attach", "put"), args)
                self._prices = _prices(told)
                if self._worker is not None:
                    self._worker.prices = self._prices
                return self._trust(told)
            except Refused as no:
                if no.code not in _WAIT or asyncio.get_running_loop().time() + pause > until:
                    raise
                log.info("%s waits for the broker: %s", self.name, no.body.message)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 2.0)

    def _trust(self, told: Any) -> Trust:
        # INVARIANT: what the broker says of its keys counts only where the file has none (test_pinned_keys_win).
        if self.pinned is not None:
            return Trust(self.name, *self.pinned, self._fresh_keys)
        try:
            with as_refused():
                keys = KeySet.from_jwks(told["jwks"])
            return Trust(self.name, str(told["issuer"]), keys, lambda: keys)
        except (KeyError, TypeError):
            raise refused(
                Code.UNAUTHENTICATED, "the credentials file has no keys and the broker named none", rule="agent.keys",
                ask="put issuer and jwks into the credentials file",
            ) from None  # fmt: skip

    def _fresh_keys(self) -> KeySet:
        """The keys of the file as it is now: an operator puts new ones there when they are rotated."""
        held = self._credentials
        if held is None or held.keys is None:
            return KeySet()
        try:
            return read_credentials(held.path, self.name).keys or held.keys
        except CredentialsError:
            return held.keys

    def _attach_again(self) -> None:
        """After a lost connection the broker may have been away as well, and have forgotten what is attached."""

        async def again() -> None:
            with contextlib.suppress(Refused):
                if self._client is not None:
                    await self._attach(self._client, 3600.0)

        if self._attaching is not None:
            self._attaching.cancel()
        self._attaching = asyncio.get_running_loop().create_task(again())


def _prices(told: Any) -> ModelPrices:
    """What the broker says that models cost; without that, or where it cannot be read, every model is a dear one."""
    try:
        return ModelPrices(msgspec.convert(told.get("models", {}), dict[str, ModelPrice], strict=True))
    except (AttributeError, msgspec.ValidationError):
        log.warning("the broker's prices of models cannot be read")
        return ModelPrices({})


def _exit(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    raise SystemExit(code)
