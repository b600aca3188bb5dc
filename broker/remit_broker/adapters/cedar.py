"""Policy by Cedar: deny by default, a forbid wins, and any error in deciding is a denial."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Final

import cedarpy
import msgspec

from remit_broker.adapters.cedar_source import (
    ALL,
    Source,
    Within,
    policy_set,
    read_folder,
    read_policies,
    rules_of,
)
from remit_broker.core.arguments import NOTHING, UNKNOWN, Arguments, Plan, plan_of, projected
from remit_broker.core.policy import PolicyRequest, Rule, Verdict, undecided, verdict_of
from remit_broker.core.policy_texts import revision_of
from remit_broker.core.question import ARGS, facts_read, project, relevant
from remit_broker.core.registry import Target
from remit_broker.core.rulings import Rulings, ruled
from remit_broker.core.unseen import widened

CACHED: Final = 4096
"""Decisions kept for one policy set."""

PLANS: Final = 2048
"""Schemas whose projections are kept."""

SETS: Final = 256
"""Sets of policies kept: one for each tenant and server that has a folder, and without what exceptions lift."""

MAX_REQUEST: Final = 256 * 1024
"""Largest question in bytes: one that is larger is not a question that the pipeline asks."""

_NONE: Final[frozenset[str]] = frozenset()
_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(PolicyRequest)


def packaged(name: str) -> str:
    """The text of a file that ships with the broker: ``schema.cedarschema`` or ``default.cedar``."""
    return resources.files("remit_broker").joinpath("policies", name).read_text(encoding="utf-8")


class CedarEngine:
    """The policies of a folder, with what operators have said about them. Decisions are pure CPU and hold the GIL."""

    def __init__(self, folder: Path, policies: Policies) -> None:
        self.folder = folder
        self.rulings = Rulings()
        self.trouble = ""
        """Why the folder as it is now is not in force; empty where it is."""
        self._policies = policies
        self._keep: Callable[[Mapping[str, str]], None] = lambda texts: None

    def kept_by(self, keep: Callable[[Mapping[str, str]], None]) -> None:
        """From now on ``keep`` is given the texts of every set that comes into force, beginning with this one."""
        self._keep = keep
        keep(self._policies.texts)

    @classmethod
    def load(cls, folder: Path) -> CedarEngine:
        """Read and check the policies in ``folder``. Raises ``ConfigError`` naming file, line, policy and what is allowed."""
        return cls(folder, Policies.read(folder))

    def put(self, policies: Policies) -> None:
        """From now on decide by ``policies``: one assignment, so that no decision is made by half of each."""
        self._keep(policies.texts)
        # INVARIANT: what is in force is replaced only by a set that is valid as a whole (test_a_bad_policy_keeps_the_last_good).
        self._policies, self.trouble = policies, ""

    @property
    def revision(self) -> str:
        """SHA-256, in hex, of the canonical JSON of the sorted ``[path, text]`` pairs."""
        return self._policies.revision

    @property
    def policies(self) -> Policies:
        """What is in force."""
        return self._policies

    @property
    def labels(self) -> bool:
        """Whether a policy puts labels on data."""
        return self._policies.labels

    def knows(self, tenant: str, name: str) -> bool:
        """Whether there is a policy called ``name`` that a tenant may know of."""
        sources = self._policies.sources
        return any(
            one.rule.id == name and (one.within.kind != "tenant" or one.within.name == tenant) for one in sources
        )

    def arguments(self, target: Target, value: Any) -> Arguments:
        """What policy may see of ``value``, the arguments of ``target``; nothing where no policy looks at any."""
        return self._policies.arguments(target, value)

    def decide(self, request: PolicyRequest) -> Verdict:
        """Never raises: whatever goes wrong is a denial."""
        policies = self._policies
        try:
            verdict = policies.decide(request)
            return ruled(request, verdict, functools.partial(policies.decide, request), self.rulings)
        except Exception as error:
            return undecided(policies.revision, f"{type(error).__name__}: {error}"[:500])


class Policies:
    """One immutable set of policies with the decisions already made under it."""

    def __init__(self, sources: Iterable[Source], revision: str) -> None:
        self.sources = tuple(sources)
        self.revision = revision
        self.texts: Mapping[str, str] = {}
        """The files that were read, by path."""
        self.rules: dict[str, Rule] = rules_of(self.sources)
        self.labels = any(rule.label for rule in self.rules.values())
        self._schema = _schema()
        self._folders = {source.within for source in self.sources}
        self._set = functools.lru_cache(SETS)(self._compose)
        self._read = facts_read(source.body for source in self.sources)
        self._plans: dict[str, tuple[dict[str, Any], Plan]] = {}
        self._cached = functools.lru_cache(CACHED)(self._evaluate)

    @classmethod
    def read(cls, folder: Path) -> Policies:
        """The policies in ``folder``. Raises ``ConfigError``."""
        texts = read_folder(folder)
        read = cls(read_policies(folder, texts, _schema()), revision_of(texts))
        read.texts = texts
        return read

    def assuming(self, effect: str) -> Policies:
        """These policies as if all arguments were what those of ``effect`` that look at them want, and no other's.

        ``forbid`` gives the least that can be permitted, whatever the arguments were, ``permit`` the most.
        """
        kept = []
        for source in self.sources:
            if not facts_read([source.body]) & ARGS:
                kept.append(source)
            elif source.rule.effect == effect:
                kept.append(source._replace(body=widened(source.body)))
        return Policies(kept, self.revision)

    @property
    def looks_at_arguments(self) -> bool:
        """Whether any policy does."""
        return bool(self._read & ARGS)

    def arguments(self, target: Target, value: Any) -> Arguments:
        """The projection by the target's own schema."""
        if not self._read & ARGS:
            return NOTHING
        schema, plan = self._plans.get(target.definition, (None, UNKNOWN))
        if schema is not target.input_schema:
            # A digest that comes with another schema than before is not believed.
            plan = plan_of(target.input_schema)
            if len(self._plans) >= PLANS:
                self._plans.clear()
            self._plans[target.definition] = (target.input_schema, plan)
        return projected(plan, value)

    def decide(
        self, request: PolicyRequest, without: frozenset[str] = _NONE, lenient: frozenset[str] = _NONE
    ) -> Verdict:
        """The verdict, as if the policies ``without`` were not there and those in ``lenient`` demanded nothing.

        Raises whatever a request that is not well formed makes the encoder or Cedar raise.
        """
        # INVARIANT: the key is the whole question that is evaluated, byte for byte, so equal keys have equal answers
        # (test_a_cached_decision_is_the_one_that_would_be_made_now).
        return self._cached(_encoder.encode(relevant(request, self._read)), without, lenient)

    def _compose(self, within: tuple[Within, ...], without: frozenset[str]) -> cedarpy.PolicySet:
        chosen = (source for source in self.sources if source.within in within and source.rule.id not in without)
        return policy_set(list(chosen))

    def _evaluate(self, key: bytes, without: frozenset[str], lenient: frozenset[str]) -> Verdict:
        if len(key) > MAX_REQUEST:
            raise ValueError(f"a question of {len(key)} bytes")
        # Decoding checks every type, and a value of another type than declared raises.
        request = _decoder.decode(key)
        question = project(request)
        # INVARIANT: a policy in the folder of a tenant or server is not even asked about the requests of another
        # (test_a_policy_in_a_folder_speaks_of_nobody_elses_requests).
        server = request.resource.name if request.resource.kind == "mcp" else ""
        own = (ALL, Within("tenant", request.tenant), Within("server", server))
        answer = cedarpy.is_authorized(
            {
                "principal": question.principal,
                "action": question.action,
                "resource": question.resource,
                "context": _encoder.encode(question.context).decode(),
            },
            self._set(tuple(one for one in own if one in self._folders), without),
            _encoder.encode(question.entities).decode(),
            self._schema,
        )
        # INVARIANT: Cedar skips a policy that errs, so a forbid that errs would allow; any error denies, and so does
        # anything but a clear decision (test_a_forbid_that_errs_denies).
        errors = answer.diagnostics.errors
        if errors or answer.decision is cedarpy.Decision.NoDecision:
            return undecided(self.revision, "; ".join(errors)[:500])
        deciding = [_without_demands(self.rules[name], lenient) for name in answer.diagnostics.reasons]
        return verdict_of(answer.decision is cedarpy.Decision.Allow, deciding, self.revision)


def _without_demands(rule: Rule, lenient: frozenset[str]) -> Rule:
    return rule if rule.id not in lenient else msgspec.structs.replace(rule, approve=None, redact=(), cap=None)


@functools.cache
def _schema() -> cedarpy.Schema:
    return cedarpy.Schema.from_str(packaged("schema.cedarschema"))


__all__ = ["CedarEngine", "Policies", "packaged"]
