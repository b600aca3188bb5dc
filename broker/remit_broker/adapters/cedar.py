"""Policy by Cedar: deny by default, a forbid wins, and any error in deciding is a denial."""

from __future__ import annotations

import functools
import hashlib
from importlib import resources
from pathlib import Path
from typing import Any, Final

import cedarpy
import msgspec

from remit_broker.adapters.cedar_source import ALL, Within, policy_set, read_folder, read_policies, rules_of
from remit_broker.core.arguments import NOTHING, UNKNOWN, Arguments, Plan, plan_of, projected
from remit_broker.core.policy import PolicyRequest, Verdict, undecided, verdict_of
from remit_broker.core.question import ARGS, facts_read, project, relevant
from remit_broker.core.registry import Target
from remit_schemas.canonical import canonical

CACHED: Final = 4096
"""Decisions kept for one policy set."""

PLANS: Final = 2048
"""Schemas whose projections are kept."""

MAX_REQUEST: Final = 256 * 1024
"""Largest question in bytes: one that is larger is not a question that the pipeline asks."""

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(PolicyRequest)


def packaged(name: str) -> str:
    """The text of a file that ships with the broker: ``schema.cedarschema`` or ``default.cedar``."""
    return resources.files("remit_broker").joinpath("policies", name).read_text(encoding="utf-8")


class CedarEngine:
    """The policies of a folder. Decisions are pure CPU and hold the GIL."""

    def __init__(self, folder: Path, policies: Policies) -> None:
        self._folder = folder
        self._policies = policies

    @classmethod
    def load(cls, folder: Path) -> CedarEngine:
        """Read and check the policies in ``folder``. Raises ``ConfigError`` naming file, line, policy and what is allowed."""
        return cls(folder, Policies(folder))

    def reload(self) -> str:
        """Read the folder again, all or nothing; the new revision. Raises ``ConfigError``, and then nothing has changed."""
        # INVARIANT: what is in force is replaced only by a set that is valid as a whole (test_a_bad_policy_keeps_the_last_good).
        self._policies = Policies(self._folder)
        return self._policies.revision

    @property
    def revision(self) -> str:
        """SHA-256, in hex, of the canonical JSON of the sorted ``[path, text]`` pairs."""
        return self._policies.revision

    @property
    def labels(self) -> bool:
        """Whether a policy puts labels on data."""
        return self._policies.labels

    def arguments(self, target: Target, value: Any) -> Arguments:
        """What policy may see of ``value``, the arguments of ``target``; nothing where no policy looks at any."""
        return self._policies.arguments(target, value)

    def decide(self, request: PolicyRequest) -> Verdict:
        """Never raises: whatever goes wrong is a denial."""
        policies = self._policies
        try:
            return policies.decide(request)
        except Exception as error:
            return undecided(policies.revision, f"{type(error).__name__}: {error}"[:500])


class Policies:
    """One immutable set of policies with the decisions already made under it."""

    def __init__(self, folder: Path) -> None:
        texts = read_folder(folder)
        self.revision = hashlib.sha256(canonical(sorted([name, text] for name, text in texts.items()))).hexdigest()
        self._schema = cedarpy.Schema.from_str(packaged("schema.cedarschema"))
        sources = read_policies(folder, texts, self._schema)
        self._sources = sources
        self._rules = rules_of(sources)
        self.labels = any(rule.label for rule in self._rules.values())
        self._folders = {source.within for source in sources}
        self._sets: dict[tuple[Within, ...], cedarpy.PolicySet] = {}
        self._read = facts_read(source.body for source in sources)
        self._plans: dict[str, tuple[dict[str, Any], Plan]] = {}
        self._cached = functools.lru_cache(CACHED)(self._evaluate)

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

    def decide(self, request: PolicyRequest) -> Verdict:
        """The verdict. Raises whatever a request that is not well formed makes the encoder or Cedar raise."""
        # INVARIANT: the key is the whole question that is evaluated, byte for byte, so equal keys have equal answers
        # (test_a_cached_decision_is_the_one_that_would_be_made_now).
        return self._cached(_encoder.encode(relevant(request, self._read)))

    def _set(self, request: PolicyRequest) -> cedarpy.PolicySet:
        # INVARIANT: a policy in the folder of a tenant or server is not even asked about the requests of another
        # (test_a_policy_in_a_folder_speaks_of_nobody_elses_requests).
        server = request.resource.name if request.resource.kind == "mcp" else ""
        own = (ALL, Within("tenant", request.tenant), Within("server", server))
        chosen = tuple(one for one in own if one in self._folders)
        if chosen not in self._sets:
            self._sets[chosen] = policy_set([source for source in self._sources if source.within in chosen])
        return self._sets[chosen]

    def _evaluate(self, key: bytes) -> Verdict:
        if len(key) > MAX_REQUEST:
            raise ValueError(f"a question of {len(key)} bytes")
        # Decoding checks every type, and a value of another type than declared raises.
        request = _decoder.decode(key)
        question = project(request)
        answer = cedarpy.is_authorized(
            {
                "principal": question.principal,
                "action": question.action,
                "resource": question.resource,
                "context": _encoder.encode(question.context).decode(),
            },
            self._set(request),
            _encoder.encode(question.entities).decode(),
            self._schema,
        )
        # INVARIANT: Cedar skips a policy that errs, so a forbid that errs would allow; any error denies, and so does
        # anything but a clear decision (test_a_forbid_that_errs_denies).
        errors = answer.diagnostics.errors
        if errors or answer.decision is cedarpy.Decision.NoDecision:
            return undecided(self.revision, "; ".join(errors)[:500])
        deciding = [self._rules[name] for name in answer.diagnostics.reasons]
        return verdict_of(answer.decision is cedarpy.Decision.Allow, deciding, self.revision)
