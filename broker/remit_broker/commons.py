"""The ports that all tenants of a broker share: what is keyed by the tenant of a call, or knows no tenant."""

from __future__ import annotations

from typing import Any, NamedTuple

from remit_broker.adapters.content.presidio import presidio
from remit_broker.adapters.detectors import ContentDetectors
from remit_broker.adapters.json_schema import JsonSchemas
from remit_broker.adapters.keyfiles import KeyFiles
from remit_broker.adapters.mint import HmacDigester, KeyMint
from remit_broker.adapters.world import Failpoints, RandomIds
from remit_broker.config import Settings
from remit_broker.ledger_port import Ledger
from remit_broker.ports import Accounts, Clock, Kept, Limits, Refusals, Results
from remit_schemas.keys import KeySet


class Stored(NamedTuple):
    """What is kept on the bus."""

    ledger: Ledger
    refusals: Refusals
    accounts: Accounts
    results: Results
    arguments: Kept


def shared_ports(settings: Settings, keys: KeyFiles, clock: Clock, stored: Stored, http: str) -> dict[str, Any]:
    """Fields of :class:`~remit_broker.ports.Ports`. ``http`` is where this broker's edge is, or empty."""
    config = settings.config
    return {
        **stored._asdict(),
        "ids": RandomIds(),
        "detectors": ContentDetectors(
            presidio(config.content.presidio, config.content.presidio_language), config.limits.result_bytes
        ),
        "schemas": JsonSchemas(),
        "mint": KeyMint(config.issuer, keys.signing, KeySet.from_jwks(keys.jwks()), clock),
        "digester": HmacDigester(keys.digest_key),
        "failpoints": Failpoints(),
        "environment": config.policy.environment,
        "limits": _limits(settings, http),
    }


def _limits(settings: Settings, http: str) -> Limits:
    config = settings.config
    limits, approvals = config.limits, config.approvals
    return Limits(
        hop_ttl=limits.hop_ttl,
        concurrency=limits.concurrency,
        replica_silence=limits.replica_silence,
        approval_ttl=approvals.ttl,
        approval_use=approvals.use,
        four_eyes=approvals.four_eyes,
        approval_url=f"{(approvals.url or http or config.issuer).rstrip('/')}/api/approvals/",
        allowed_cycles=settings.cycles,
        labels=settings.labels,
    )
