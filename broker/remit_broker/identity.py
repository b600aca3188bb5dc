"""How this broker knows users and operators: what the configuration says of it, put together, and said aloud where it trusts much."""

from __future__ import annotations

import getpass
import logging
from typing import Any

from remit_broker.adapters.dev_issuer import DevIssuer
from remit_broker.adapters.identities import Issuers
from remit_broker.adapters.keyfiles import KeyFiles
from remit_broker.config import Config
from remit_broker.core.issuers import DEV_PATH, IssuerConfig, development_issuer
from remit_broker.edges.http.metrics import Reader, Scrapers, anybody
from remit_broker.edges.http.operators import IssuerToken, LocalToken, Open, Operator
from remit_broker.ports import Clock, Identities

log = logging.getLogger("remit.identity")


def issuers_of(config: Config, http: str) -> tuple[IssuerConfig, ...]:
    """All issuers: those of the configuration, and the one at ``http`` inside this broker where it is on."""
    if not config.development.issuer:
        return config.issuers
    return (*config.issuers, development_issuer(http + DEV_PATH, config.development, beside=bool(config.issuers)))


def issuers(config: Config, http: str, clock: Clock) -> Issuers:
    """Who proves users. Says aloud where that is the development issuer."""
    if config.development.issuer:
        log.warning("DEVELOPMENT ISSUER at %s: whoever may read the data folder is whom they like", http + DEV_PATH)
    return Issuers(issuers_of(config, http), clock)


def operator(config: Config, keys: KeyFiles, identities: Identities) -> Operator:
    """How callers of ``/api`` are known. Says aloud where everybody is let in."""
    match config.http.auth:
        case "open":
            log.warning(
                "http.auth is OPEN: everybody on this machine may do everything here, as %s", config.http.open_user
            )
            return Open(config.http.open_user)
        case "issuer":
            return IssuerToken(identities, config.http.stop_all)
        case _:
            return LocalToken(keys.local_token, getpass.getuser())


def scrapers(config: Config, keys: KeyFiles, operator: Operator) -> Reader:
    """Who may read metrics."""
    if config.http.auth != "issuer":
        return anybody
    return Scrapers(keys.metrics_token(), operator if not config.tenants else None)


def dev_issuer(config: Config, keys: KeyFiles, http: str, clock: Clock) -> DevIssuer | None:
    """The issuer inside this broker, where it is on. People log in at it where there is no real one."""
    if not config.development.issuer:
        return None
    back = f"{(config.oauth.url or http).rstrip('/')}/oauth/callback"
    return DevIssuer(http + DEV_PATH, config.development, keys, clock, None if config.issuers else back)


def marked(config: Config, http: str) -> dict[str, Any]:
    """What of this everybody should see who starts the broker or asks how it is."""
    told: dict[str, Any] = {}
    if config.development.issuer:
        told["development_issuer"] = http + DEV_PATH
    if config.http.auth == "open":
        told["open"] = config.http.open_user
    return told
