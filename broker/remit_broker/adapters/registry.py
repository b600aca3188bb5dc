"""Who exists and what they serve, kept in a JetStream key-value bucket for each tenant and mirrored in memory by a watch.

Reads never leave the process; a write returns when this replica has seen it. Keys: ``principal.<name>``,
``attachment.<name>``, and what ``pin_book`` keeps (names contain nothing that a key may not).
"""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Final

import msgspec
from nats.js import JetStreamContext
from nats.js.errors import APIError, BucketNotFoundError
from nats.js.kv import KV_DEL, KV_PURGE, KeyValue

from remit_broker.adapters.pin_book import PinBook
from remit_broker.adapters.tasks import ended
from remit_broker.core.extraction import Endorser
from remit_broker.core.label_sources import NO_LABELS, LabelSources
from remit_broker.core.lookalike import skeleton
from remit_broker.core.pins import Waiting
from remit_broker.core.registry import (
    Attachment,
    Definition,
    Principal,
    Target,
    annotations_of,
    ceiling_of,
)
from remit_broker.core.shown import open_of, shown, shut
from remit_broker.core.tool_names import Named, Names
from remit_schemas.budget import ONE_CALL, Budget
from remit_schemas.errors import Code, refusal
from remit_schemas.names import DEFAULT_TENANT, Resource

BUCKET: Final = "registry"
SEEN_WITHIN: Final = 5.0
"""Seconds a write may take to come back through the watch."""

_NONE: Final[Mapping[str, Sequence[str]]] = {}


def bucket_of(tenant: str) -> str:
    """The bucket in which a tenant's registry is kept."""
    return BUCKET if tenant == DEFAULT_TENANT else f"{BUCKET}_{tenant}"


class KvRegistry:
    """The mirror of one tenant's registry. Prices, sources of labels, endorsers and groups of tools are the configuration's."""

    def __init__(
        self,
        prices: Mapping[str, Budget],
        labels: LabelSources = NO_LABELS,
        endorsers: Sequence[Endorser] = (),
        groups: Mapping[str, Sequence[str]] = _NONE,
        *,
        tenant: str = DEFAULT_TENANT,
    ) -> None:
        self._prices, self._labels, self._groups, self.tenant = prices, labels, groups, tenant
        self._endorsers = {endorser.target: endorser for endorser in endorsers}
        self._bucket_name = bucket_of(tenant)
        self.holder: Callable[[str], Principal | None] = self.by_nkey
        """Who has a public nkey; of several tenants, in any of them."""
        self._principals: dict[str, Principal] = {}
        self._by_nkey: dict[str, Principal] = {}
        self._attachments: dict[str, Attachment] = {}
        self.pins = PinBook()
        self._targets: dict[Resource, Target] = {}
        self._names: tuple[Names, Names] | None = None
        self._shut: dict[str, dict[str, str]] = {}
        self._presented: dict[str, Attachment] = {}
        self.heard: list[Callable[[str], None]] = []
        """Told of whatever changed about a principal; they must not wait."""
        self._seen = asyncio.Condition()
        self.evict: Callable[[str], Awaitable[None]] = _nobody
        """Ends every connection that was let in under a name."""
        self._revision = 0
        self._kv: KeyValue | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, js: JetStreamContext, replicas: int, fault: Callable[[str, BaseException], None]) -> None:
        """Create or open the bucket and mirror it; returns when everything in it has been read."""
        try:
            self._kv = await js.key_value(self._bucket_name)
        except BucketNotFoundError:
            self._kv = await js.create_key_value(bucket=self._bucket_name, history=5, replicas=replicas)
        ready = asyncio.Event()
        self._task = asyncio.create_task(self._mirror(ready, fault))
        async with asyncio.timeout(10):
            await ready.wait()

    async def stop(self) -> None:
        """Stop mirroring."""
        if self._task is not None:
            await ended(self._task)

    @property
    def revision(self) -> int:
        """Grows with every change seen."""
        return self._revision

    def principal(self, name: str) -> Principal | None:
        """An agent or server by name."""
        return self._principals.get(name)

    def by_nkey(self, public: str) -> Principal | None:
        """An agent or server by the public nkey it proves at connect."""
        return self._by_nkey.get(public)

    def principals(self) -> list[Principal]:
        """Everybody, by name."""
        return [self._principals[name] for name in sorted(self._principals)]

    def attachment(self, name: str) -> Attachment | None:
        """What a principal serves."""
        return self._attachments.get(name)

    def target(self, resource: Resource) -> Target | None:
        """What a resource is."""
        return self._targets.get(resource)

    def targets(self) -> list[Resource]:
        """Everything that is served."""
        return sorted(self._targets)

    def nearest(self, resource: Resource) -> Sequence[str]:
        """Up to three resources with similar names."""
        return difflib.get_close_matches(str(resource), [str(known) for known in self._targets], n=3, cutoff=0.6)

    async def add(self, principal: Principal) -> None:
        """Register an agent or server. Refuses CONFLICT where the name or the nkey is taken by another."""
        if principal.tenant != self.tenant:
            raise RuntimeError("a principal of another tenant")
        known = self._principals.get(principal.name)
        holder = self.holder(principal.nkey)
        if known and known.nkey != principal.nkey:
            raise refusal(
                Code.CONFLICT, f"{principal.name} is registered already", rule="agents.exists",
                ask=f"remove it first: remit agents remove {principal.name}",
            )  # fmt: skip
        # INVARIANT: a key is one principal's in all tenants, and nobody is told in which one it is known
        # (test_a_key_belongs_to_one_principal_of_all_tenants).
        if holder and (holder.tenant, holder.name) != (self.tenant, principal.name):
            raise refusal(
                Code.CONFLICT, f"the key for {principal.name} is another one's already", rule="agents.key",
                ask="draw a new key: remit agents add does so",
            )  # fmt: skip
        if known is None:
            self._no_twin(principal.name)
            # INVARIANT: a name that is given anew has no connection of an earlier holder, or that one would be it
            # (test_whoever_holds_the_old_key_of_a_name_is_nobody_under_the_new_one).
            await self.evict(principal.name)
        await self._put(f"principal.{principal.name}", principal)

    def _no_twin(self, name: str) -> None:
        # INVARIANT: no two names can be taken for each other (test_a_name_that_looks_like_another_is_refused).
        look = skeleton(name)
        if other := next((one for one in self._principals if skeleton(one) == look), None):
            raise refusal(
                Code.CONFLICT, f"{name} looks like {other}, which is registered already", rule="agents.look_alike",
                ask="choose a name that cannot be taken for another",
            )  # fmt: skip

    async def remove(self, name: str) -> None:
        """Forget an agent or server and what it serves. Refuses UNKNOWN_TARGET."""
        if name not in self._principals:
            near = ", ".join(difflib.get_close_matches(name, self._principals, n=3))
            raise refusal(
                Code.UNKNOWN_TARGET, f"no agent or server is called {name}", rule="agents.unknown",
                ask=f"did you mean {near}?" if near else "look with remit agents list",
            )  # fmt: skip
        # The principal first: from then on the bus lets nobody in under the name, and those who are in can be sent out.
        for key in (f"principal.{name}", f"attachment.{name}", *self.pins.keys(name)):
            await self._delete(key)
        await self.evict(name)

    async def attach(self, attachment: Attachment) -> None:
        """Take note of what a principal serves. The first definition of a tool pins it; a changed one waits for acceptance."""
        known = self._attachments.get(attachment.name)
        if attachment.kind == "mcp":
            new, crowded = self.pins.first_seen(attachment)
            if crowded:
                attachment = msgspec.structs.replace(attachment, held={**attachment.held, **crowded})
            for key, old in self.pins.going(known, attachment).items():
                await self._put(key, old)
            if new:
                await self._put(f"pins.{attachment.name}", {**self.pins.of(attachment.name), **new})
        same = known is not None and msgspec.structs.replace(known, at="") == msgspec.structs.replace(attachment, at="")
        if not same:
            await self._put(f"attachment.{attachment.name}", attachment)

    async def accept(self, name: str, digests: Mapping[str, str], *, forget: bool = False) -> list[str]:
        """Accept definitions of a server as they were shown (name → digest); the names. Refuses CONFLICT and UNKNOWN_TARGET."""
        pins, needless = self.acceptable(name, digests, forget=forget)
        await self._put(f"pins.{name}", pins)
        for key in needless:
            await self._delete(key)
        return sorted(digests)

    def acceptable(
        self, name: str, digests: Mapping[str, str], *, forget: bool = False
    ) -> tuple[dict[str, str], list[str]]:
        """What :meth:`accept` would write, and the keys it would delete. Refuses as it does, and changes nothing."""
        attachment = self._attachments.get(name)
        if attachment is None:
            raise refusal(
                Code.UNKNOWN_TARGET, f"nothing is attached as {name}", rule="servers.unknown", ask="remit servers list"
            )
        return self.pins.accepted(attachment, digests, forget=forget)

    def accepted(self, name: str) -> Mapping[str, str]:
        """The digests that are accepted of a server, by name."""
        return self.pins.of(name)

    def waiting(self, name: str) -> list[Waiting]:
        """The tools of a server that wait to be accepted, and why."""
        return self.pins.waiting(self._attachments.get(name))

    def forgettable(self, name: str) -> list[str]:
        """What was accepted of a server that it does not offer now."""
        attachment = self._attachments.get(name)
        said = {d.op for d in attachment.definitions} | set(shown(attachment.offers)) if attachment else set()
        return sorted(op for op in self.pins.of(name) if op not in said)

    def quarantined(self, name: str) -> list[Resource]:
        """The tools of a server that wait to be accepted."""
        return [resource for resource, target in self._targets.items() if resource.name == name and target.quarantined]

    def tool_names(self) -> Names:
        """What tools are called where all servers are one; made anew when something changed."""
        return self._named()[0]

    def prompt_names(self) -> Names:
        """Likewise of prompts."""
        return self._named()[1]

    def _named(self) -> tuple[Names, Names]:
        if self._names is None:
            tools = (
                Named(one.name, one.op) for one in self._targets if one.kind == "mcp" and not one.op.startswith("$")
            )
            prompts = (
                Named(name, str(one.get("name")))
                for name in sorted(self._presented)
                for one in self._attachments[name].offers.get("prompts", [])
            )
            self._names = Names(sorted(tools)), Names(prompts)
        return self._names

    def quarantined_shown(self, name: str) -> list[str]:
        """What of that which a server shows beside its tools waits to be accepted."""
        return sorted(self._shut.get(name, {}))

    def presented(self, name: str) -> Attachment | None:
        """What a principal serves, without what it shows beside its tools that waits to be accepted."""
        return self._presented.get(name)

    def shown(self, but: str) -> dict[str, list[str]]:
        """The names of what every server except one shows beside its tools, by server."""
        return {
            name: list(shown(attachment.offers))
            for name, attachment in self._attachments.items()
            if attachment.kind == "mcp" and name != but and name in self._principals
        }

    def offered(self, but: str) -> dict[str, list[str]]:
        """The tools of every server except one, by server."""
        return {
            name: [d.op for d in attachment.definitions if not d.op.startswith("$")]
            for name, attachment in self._attachments.items()
            if attachment.kind == "mcp" and name != but and name in self._principals
        }

    async def _put(self, key: str, value: Any) -> None:
        await self._write(self._bucket.put(key, msgspec.json.encode(value)))

    async def _delete(self, key: str) -> None:
        await self._write(self._bucket.delete(key))

    async def _write(self, write: Any) -> None:
        try:
            await write
            status = await self._bucket.status()
            last = status.stream_info.state.last_seq
            async with asyncio.timeout(SEEN_WITHIN), self._seen:
                await self._seen.wait_for(lambda: self._revision >= last)
        except (APIError, TimeoutError) as error:
            raise refusal(
                Code.LEDGER_UNAVAILABLE, "the registry cannot be written", rule="registry.write", ask="try again",
                cause=repr(error),
            ) from None  # fmt: skip

    @property
    def _bucket(self) -> KeyValue:
        if self._kv is None:
            raise RuntimeError("not started")
        return self._kv

    async def _mirror(self, ready: asyncio.Event, fault: Callable[[str, BaseException], None]) -> None:
        while True:
            try:
                watcher = await self._bucket.watchall()
                async for entry in watcher:
                    if entry is None:
                        ready.set()
                        continue
                    gone = entry.operation in (KV_DEL, KV_PURGE)
                    self._apply(entry.key, None if gone else entry.value)
                    async with self._seen:
                        self._revision = max(self._revision, entry.revision or 0)
                        self._seen.notify_all()
                ready.set()
            except Exception as error:
                fault("registry", error)
            await asyncio.sleep(0.2)

    def _apply(self, key: str, value: bytes | None) -> None:
        kind, _, name = key.partition(".")
        if kind == "principal":
            old = self._principals.pop(name, None)
            if old:
                self._by_nkey.pop(old.nkey, None)
            if value is not None:
                new = msgspec.json.decode(value, type=Principal)
                # INVARIANT: what stands in a tenant's bucket is of that tenant, or nobody
                # (test_a_principal_in_the_bucket_of_another_tenant_is_nobody).
                if new.tenant == self.tenant:
                    self._principals[name] = self._by_nkey[new.nkey] = new
        elif kind == "attachment":
            self._attachments.pop(name, None)
            if value is not None:
                self._attachments[name] = msgspec.json.decode(value, type=Attachment)
        elif kind in ("pins", "was", "seen"):
            name = self.pins.hear(kind, name, value)
        self._resolve(name)
        for hear in self.heard:
            hear(name)

    def _resolve(self, name: str) -> None:
        self._names = None
        for stale in [resource for resource in self._targets if resource.name == name]:
            del self._targets[stale]
        self._shut.pop(name, None)
        self._presented.pop(name, None)
        principal, attachment = self._principals.get(name), self._attachments.get(name)
        if principal is None or attachment is None or attachment.kind != principal.kind:
            return
        reasons = self.pins.shut(attachment) if principal.kind == "mcp" else {}
        if reasons:
            self._shut[name] = reasons
        left = open_of(attachment.offers, reasons) if reasons else attachment.offers
        self._presented[name] = msgspec.structs.replace(attachment, offers=left)
        closed = shut(attachment.offers, reasons)
        for definition in attachment.definitions:
            resource = Resource(principal.kind, name, definition.op)
            held = (
                self.pins.reason(attachment, definition)
                if principal.kind == "mcp" and not definition.op.startswith("$")
                else ""
            )
            found = self._target(principal, definition, resource, held)
            ours = definition.op.startswith("$")
            self._targets[resource] = msgspec.structs.replace(found, shut=closed) if ours and reasons else found

    def _target(self, principal: Principal, definition: Definition, resource: Resource, held: str) -> Target:
        return Target(
            kind=principal.kind,
            callee=principal.name,
            op=definition.op,
            tier=principal.tier,
            definition=definition.digest,
            input_schema=definition.input_schema,
            output_schema=definition.output_schema,
            annotations=annotations_of(definition.annotations),
            ceiling=ceiling_of(principal.kind, definition),
            price=_best(self._prices, resource, ONE_CALL),
            labels=self._labels.of(str(resource)),
            endorser=self._endorsers.get(str(resource)),
            groups=tuple(sorted(name for name, some in self._groups.items() if _any(some, resource))),
            quarantined=held,
        )


async def _nobody(_: str) -> None:
    return None


def _any(patterns: Sequence[str], resource: Resource) -> bool:
    return resource.kind == "mcp" and any(fnmatchcase(str(resource), pattern) for pattern in patterns)


def _best(table: Mapping[str, Budget], resource: Resource, default: Budget) -> Budget:
    """The price of the longest pattern that matches, since that one says the most."""
    fitting = [pattern for pattern in table if fnmatchcase(str(resource), pattern)]
    return table[max(fitting, key=len)] if fitting else default
