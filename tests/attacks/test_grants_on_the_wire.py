"""Grants that are stolen, forged, altered or worn out, sent by a raw client that holds valid credentials."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import pytest_asyncio

from remit_broker.hop.txn import Opened, close_txn, revoke
from remit_schemas.base64url import decode, encode
from remit_schemas.claims import Actor, Claims
from remit_schemas.envelope import FINAL, Result
from remit_schemas.grant import mint, parse
from remit_schemas.keys import SigningKey
from tests.support.raw import Arena, RawAgent, error_of, skill, tool

pytestmark = pytest.mark.asyncio(loop_scope="module")

READ = "mcp/files/read"
BRIEF = "agent/bob/brief"


class Stage:
    """Alice holds root grants; Bob serves a skill; Mallory has credentials and nobody's trust; Files is a server of tools."""

    def __init__(self, arena: Arena, alice: RawAgent, bob: RawAgent, mallory: RawAgent, files: RawAgent) -> None:
        self.arena, self.alice, self.bob, self.mallory, self.files = arena, alice, bob, mallory, files

    async def root(self, *scopes: str, **options: Any) -> Opened:
        return await self.arena.lab.grant("alice", *(scopes or ("mcp/**", "agent/**")), **options)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def stage(arena: Arena) -> Stage:
    alice, bob, mallory = [await arena.agent(name) for name in ("alice", "bob", "mallory")]
    files = await arena.agent("files", "mcp")
    files.handlers["read"] = lambda taken: taken.done("content")
    await files.serve(tool("read"))
    await bob.serve(skill("brief"))
    return Stage(arena, alice, bob, mallory, files)


async def test_the_stage_is_set_so_that_an_honest_call_passes(stage: Stage) -> None:
    """Also with a token that was taken apart and signed again, as the forgers below do it."""
    root = await stage.root()
    header, payload, _ = pieces(root.grant)
    again = signed(broker_key(stage), header, payload)
    frames = await stage.alice.call(READ, root.txn, again, {"path": "a"})
    assert isinstance(frames[-1], Result) and frames[-1].value == "content"
    assert await stage.arena.kinds(root.txn) == ["txn.opened", "hop.opened", "hop.closed"]


# Stolen, and no grant at all


async def test_a_grant_of_another_holder_is_refused(stage: Stage) -> None:
    root = await stage.root()
    body = await stage.mallory.error(READ, root.txn, root.grant)
    await stage.arena.refused_before_opening(body, "GRANT_INVALID", "grant.audience", root.txn)
    assert stage.files.work(root.txn) == []


async def test_a_grant_of_another_holder_is_refused_after_the_holder_used_it(stage: Stage) -> None:
    """The broker remembers what it verified, and must not remember for whom it was right."""
    root = await stage.root()
    await stage.alice.result(READ, root.txn, root.grant)
    body = await stage.mallory.error(READ, root.txn, root.grant)
    assert (body.code, body.rule) == ("GRANT_INVALID", "grant.audience")
    assert len(stage.files.work(root.txn)) == 1


async def test_a_call_without_a_grant_is_refused(stage: Stage) -> None:
    root = await stage.root()
    for txn in (root.txn, "new"):
        body = await stage.alice.error(READ, txn, None)
        await stage.arena.refused_before_opening(body, "GRANT_INVALID", "grant.missing", root.txn)


async def test_a_grant_used_under_another_txn_is_refused(stage: Stage) -> None:
    mine, other = await stage.root(), await stage.root()
    for txn in (other.txn, "new", "0" * 31 + "1"):
        body = await stage.alice.error(READ, txn, mine.grant)
        await stage.arena.refused_before_opening(body, "GRANT_INVALID", "grant.txn", mine.txn)
    assert await stage.arena.kinds(other.txn) == ["txn.opened"]


# Altered


def part(data: Any) -> str:
    """A part of a JWS from JSON or from bytes."""
    return encode(data if isinstance(data, bytes) else json.dumps(data).encode())


def pieces(token: str) -> tuple[dict[str, Any], dict[str, Any], str]:
    header, payload, signature = token.split(".")
    return json.loads(decode(header.encode())), json.loads(decode(payload.encode())), signature


def signed(key: SigningKey, header: Any, payload: Any) -> str:
    signing_input = f"{part(header)}.{part(payload)}"
    return f"{signing_input}.{encode(key.sign(signing_input.encode()))}"


def broker_key(stage: Stage) -> SigningKey:
    return stage.arena.lab.broker.keys.signing


Forger = Callable[[str, SigningKey], str]


def _with_claim(**claims: Any) -> Forger:
    def forge(token: str, _: SigningKey) -> str:
        header, payload, signature = pieces(token)
        return f"{part(header)}.{part({**payload, **claims})}.{signature}"

    return forge


def _with_header(**members: Any) -> Forger:
    """A header with one more member, properly signed: the broker's own key must not lend it meaning."""

    def forge(token: str, key: SigningKey) -> str:
        header, payload, _ = pieces(token)
        return signed(key, {**header, **members}, payload)

    return forge


def _none(token: str, _: SigningKey) -> str:
    header, payload, _sig = pieces(token)
    return f"{part({**header, 'alg': 'none'})}.{part(payload)}."


def _none_with_signature(token: str, _: SigningKey) -> str:
    header, payload, signature = pieces(token)
    return f"{part({**header, 'alg': 'none'})}.{part(payload)}.{signature}"


def _hs256_with_the_public_key(token: str, key: SigningKey) -> str:
    header, payload, _ = pieces(token)
    signing_input = f"{part({**header, 'alg': 'HS256'})}.{part(payload)}"
    return f"{signing_input}.{encode(hmac.digest(key.public.raw, signing_input.encode(), hashlib.sha256))}"


def _key_of_ones_own(token: str, _: SigningKey) -> str:
    header, payload, _sig = pieces(token)
    own = SigningKey.from_seed(b"m" * 32)
    return signed(own, {**header, "kid": own.kid}, payload)


def _own_key_under_the_brokers_kid(token: str, _: SigningKey) -> str:
    header, payload, _sig = pieces(token)
    return signed(SigningKey.from_seed(b"m" * 32), header, payload)


def _own_key_in_the_header(token: str, _: SigningKey) -> str:
    header, payload, _sig = pieces(token)
    own = SigningKey.from_seed(b"m" * 32)
    return signed(own, {**header, "kid": own.kid, "jwk": own.public.to_jwk()}, payload)


def _duplicate_claim(token: str, key: SigningKey) -> str:
    header, payload, _ = pieces(token)
    text = json.dumps(payload)
    return signed(key, header, text[:-1].encode() + b',"aud":"mallory","aud":"alice"}')


def _duplicate_header(token: str, key: SigningKey) -> str:
    header, payload, _ = pieces(token)
    return signed(key, json.dumps(header)[:-1].encode() + b',"alg":"Ed25519"}', payload)


def _nan(token: str, key: SigningKey) -> str:
    header, payload, _ = pieces(token)
    return signed(key, header, json.dumps({**payload, "exp": float("nan")}).encode())


def _infinite(token: str, key: SigningKey) -> str:
    header, payload, _ = pieces(token)
    return signed(key, header, json.dumps(payload).replace(str(payload["exp"]), "1e999").encode())


def _signed_claim(**claims: Any) -> Forger:
    """Claims changed and signed by the broker's own key: what the ledger and the rules must still catch."""

    def forge(token: str, key: SigningKey) -> str:
        header, payload, _ = pieces(token)
        payload = {**payload, **claims}
        return signed(key, header, {name: value for name, value in payload.items() if value is not ...})

    return forge


def _expired(token: str, key: SigningKey) -> str:
    now = int(time.time())
    return _signed_claim(iat=now - 120, exp=now - 1)(token, key)


def _issued_in_the_future(token: str, key: SigningKey) -> str:
    now = int(time.time())
    return _signed_claim(iat=now + 3600, exp=now + 7200)(token, key)


def _checkpoint_typ(token: str, key: SigningKey) -> str:
    header, payload, _ = pieces(token)
    return signed(key, {**header, "typ": "JWT"}, payload)


def _other_kid(token: str, key: SigningKey) -> str:
    header, payload, _ = pieces(token)
    return signed(key, {**header, "kid": "../../etc/passwd"}, payload)


ALTERED: dict[str, tuple[Forger, str, str]] = {
    "another holder": (_with_claim(aud="mallory"), "GRANT_INVALID", "grant.signature"),
    "a wider scope": (
        _with_claim(authorization_details=[{"type": "remit", "resource": "**"}]),
        "GRANT_INVALID", "grant.signature",
    ),
    "a larger budget": (
        _with_claim(budget={"usd_micros": 2**52, "tokens": 2**52, "calls": 2**52}),
        "GRANT_INVALID", "grant.signature",
    ),
    "a longer life": (_with_claim(exp=2**40), "GRANT_INVALID", "grant.signature"),
    "a deeper tree": (_with_claim(max_depth=16), "GRANT_INVALID", "grant.signature"),
    "another user": (_with_claim(sub="root"), "GRANT_INVALID", "grant.signature"),
    "alg none": (_none, "GRANT_INVALID", "grant.form"),
    "alg none with a signature": (_none_with_signature, "GRANT_INVALID", "grant.alg"),
    "HS256 with the public key": (_hs256_with_the_public_key, "GRANT_INVALID", "grant.alg"),
    "alg EdDSA": (_with_header(alg="EdDSA"), "GRANT_INVALID", "grant.alg"),
    "a key of one's own": (_key_of_ones_own, "GRANT_INVALID", "grant.kid"),
    "the broker's kid on another key": (_own_key_under_the_brokers_kid, "GRANT_INVALID", "grant.signature"),
    "a key in the header": (_own_key_in_the_header, "GRANT_INVALID", "grant.header"),
    "a kid that is a path": (_other_kid, "GRANT_INVALID", "grant.kid"),
    "crit": (_with_header(crit=["exp"]), "GRANT_INVALID", "grant.header"),
    "b64": (_with_header(b64=False, crit=["b64"]), "GRANT_INVALID", "grant.header"),
    "jku": (_with_header(jku="http://127.0.0.1:1/jwks"), "GRANT_INVALID", "grant.header"),
    "x5u": (_with_header(x5u="http://127.0.0.1:1/cert"), "GRANT_INVALID", "grant.header"),
    "x5c": (_with_header(x5c=["AAAA"]), "GRANT_INVALID", "grant.header"),
    "zip": (_with_header(zip="DEF"), "GRANT_INVALID", "grant.header"),
    "another typ": (_checkpoint_typ, "GRANT_INVALID", "grant.typ"),
    "a claim twice": (_duplicate_claim, "GRANT_INVALID", "grant.json"),
    "a header member twice": (_duplicate_header, "GRANT_INVALID", "grant.header"),
    "exp NaN": (_nan, "GRANT_INVALID", "grant.json"),
    "exp infinite": (_infinite, "GRANT_INVALID", "grant.json"),
    "exp missing": (_signed_claim(exp=...), "GRANT_INVALID", "grant.times"),
    "exp a float": (_signed_claim(exp=4e9), "GRANT_INVALID", "grant.times"),
    "aud a list": (_signed_claim(aud=["alice", "mallory"]), "GRANT_INVALID", "grant.audience"),
    "another issuer": (_signed_claim(iss="https://elsewhere"), "GRANT_INVALID", "grant.issuer"),
    "an unknown claim": (_signed_claim(admin=True), "GRANT_INVALID", "grant.claims"),
    "expired": (_expired, "GRANT_EXPIRED", "grant.expired"),
    "issued in the future": (_issued_in_the_future, "GRANT_INVALID", "grant.iat"),
    "one megabyte": (lambda token, key: token + "A" * 700_000, "TOO_LARGE", "grant.size"),
    "not a token": (lambda token, key: "..", "GRANT_INVALID", "grant.form"),
    "a fourth part": (lambda token, key: token + ".x", "GRANT_INVALID", "grant.form"),
    "padding": (lambda token, key: token + "==", "GRANT_INVALID", "grant.form"),
    "a line feed": (lambda token, key: token + "\n", "GRANT_INVALID", "grant.form"),
}  # fmt: skip


@pytest.mark.parametrize("name", ALTERED)
async def test_an_altered_token_is_refused(stage: Stage, name: str) -> None:
    forge, code, rule = ALTERED[name]
    root = await stage.root()
    body = await stage.alice.error(READ, root.txn, forge(root.grant, broker_key(stage)))
    await stage.arena.refused_before_opening(body, code, rule, root.txn)


async def test_a_token_of_a_megabyte_is_refused_by_its_envelope(stage: Stage) -> None:
    root = await stage.root()
    request = json.dumps({"v": 1, "grant": root.grant + "A" * 950_000, "args": {}}).encode()
    body = error_of(await stage.alice.ask(stage.alice.subject(READ, root.txn), request))
    await stage.arena.refused_before_opening(body, "TOO_LARGE", "json.size", root.txn)


# Genuine signatures that the ledger does not know


def claims_of(token: str) -> Claims:
    return parse(token).claims


def forged(stage: Stage, token: str, **changes: Any) -> str:
    """What somebody who stole the signing key could mint."""
    return mint(msgspec.structs.replace(claims_of(token), **changes), broker_key(stage))


UNKNOWN: dict[str, Callable[[Claims], dict[str, Any]]] = {
    "another record": lambda c: {"rec": "0" * 64},
    "a later number": lambda c: {"jti": c.jti[:-1] + "2"},
    "a hop that never was": lambda c: {"jti": f"{c.txn}.{'f' * 16}.1"},
}


@pytest.mark.parametrize("name", UNKNOWN)
async def test_grant_unknown_to_the_ledger_is_refused(stage: Stage, name: str) -> None:
    """A forged grant with a genuine signature still has to be named by a record."""
    root = await stage.root()
    token = forged(stage, root.grant, **UNKNOWN[name](claims_of(root.grant)))
    body = await stage.alice.error(READ, root.txn, token)
    await stage.arena.refused_before_opening(body, "GRANT_INVALID", "grant.unknown", root.txn)


async def test_a_forged_grant_for_another_holder_of_a_known_hop_is_refused(stage: Stage) -> None:
    root = await stage.root()
    body = await stage.mallory.error(READ, root.txn, forged(stage, root.grant, aud="mallory"))
    await stage.arena.refused_before_opening(body, "GRANT_INVALID", "grant.unknown", root.txn)


async def test_a_grant_of_a_txn_that_never_was_is_refused(stage: Stage) -> None:
    root = await stage.root()
    txn = "f" * 32
    body = await stage.alice.error(READ, txn, forged(stage, root.grant, txn=txn, jti=f"{txn}.{'1' * 16}.1"))
    assert body.code == "GRANT_INVALID"
    assert (await stage.arena.refused.until(hop=body.hop))["code"] == "GRANT_INVALID"
    assert await stage.arena.kinds(txn) == []


async def test_a_grant_of_another_tenant_is_refused(stage: Stage) -> None:
    root = await stage.root()
    body = await stage.alice.error(READ, root.txn, forged(stage, root.grant, tenant="other"))
    await stage.arena.refused_before_opening(body, "GRANT_INVALID", "grant.tenant", root.txn)


async def test_a_chain_spliced_from_two_is_refused(stage: Stage) -> None:
    """A child of one txn put under the root of another: the same holder, genuine signatures, the wrong parent."""
    first, second = await stage.root(), await stage.root()
    calling = asyncio.ensure_future(stage.alice.call(BRIEF, first.txn, first.grant))
    taken = await stage.bob.took(first.txn)
    body = await stage.bob.error(READ, second.txn, taken.grant)
    await stage.arena.refused_before_opening(body, "GRANT_INVALID", "grant.txn", second.txn)
    spliced = forged(stage, taken.grant, txn=second.txn, jti=taken.grant and f"{second.txn}.{taken.dispatch.hop}.1")
    body = await stage.bob.error(READ, second.txn, spliced)
    await stage.arena.refused_before_opening(body, "GRANT_INVALID", "grant.unknown", second.txn)
    await taken.done()
    await calling


async def test_the_grant_of_a_sibling_hop_is_refused(stage: Stage) -> None:
    """Two hops of one callee in one txn: the grant of one with the record of the other is nobody's."""
    root = await stage.root()
    calling = [asyncio.ensure_future(stage.alice.call(BRIEF, root.txn, root.grant)) for _ in range(2)]
    one, two = await stage.bob.took(root.txn), await stage.bob.took(root.txn, 2)
    crossed = forged(stage, one.grant, rec=claims_of(two.grant).rec)
    body = await stage.bob.error(READ, root.txn, crossed)
    assert (body.code, body.rule) == ("GRANT_INVALID", "grant.unknown")
    for taken in (one, two):
        await taken.done()
    await asyncio.gather(*calling)


# What the broker mints


async def test_what_is_minted_names_the_chain_the_parent_and_the_record(stage: Stage) -> None:
    root = await stage.root()
    calling = asyncio.ensure_future(stage.alice.call(BRIEF, root.txn, root.grant))
    taken = await stage.bob.took(root.txn)
    child, parent = claims_of(taken.grant), claims_of(root.grant)
    records = await stage.arena.lab.records(root.txn)
    assert (child.sub, child.tenant, child.txn, child.aud) == (parent.sub, parent.tenant, parent.txn, "bob")
    assert child.act == Actor("alice") and child.par == parse(root.grant).digest
    assert (child.depth, child.rec) == (1, records[1]["hash"])
    await taken.done()
    await calling


# Worn out


async def test_a_grant_is_worth_nothing_when_its_hop_has_ended(stage: Stage) -> None:
    root = await stage.root()
    calling = asyncio.ensure_future(stage.alice.call(BRIEF, root.txn, root.grant))
    taken = await stage.bob.took(root.txn)
    await taken.done()
    await calling
    before = await stage.arena.kinds(root.txn)
    body = await stage.bob.error(READ, root.txn, taken.grant)
    assert (body.code, body.rule, body.effect) == ("GRANT_CLOSED", "grant.closed", "none")
    assert (await stage.arena.refused.until(hop=body.hop))["parent"] == taken.dispatch.hop
    assert await stage.arena.kinds(root.txn) == before


async def test_a_root_grant_is_worth_nothing_when_its_txn_was_closed(stage: Stage) -> None:
    root = await stage.root()
    await stage.alice.result("remit/txn/close", root.txn, root.grant)
    before = await stage.arena.kinds(root.txn)
    body = await stage.alice.error(READ, root.txn, root.grant)
    assert (body.code, body.rule) == ("GRANT_CLOSED", "grant.closed")
    assert await stage.arena.kinds(root.txn) == before == ["txn.opened", "txn.closed"]


async def test_a_revoked_grant_binds_the_very_next_call(stage: Stage) -> None:
    root = await stage.root()
    await stage.alice.result(READ, root.txn, root.grant)
    await revoke("default", claims_of(root.grant).jti, "ops", "test", stage.arena.lab.broker.ports)
    body = await stage.alice.error(READ, root.txn, root.grant)
    assert (body.code, body.rule, body.effect, body.txn) == ("GRANT_REVOKED", "grant.revoked", "none", root.txn)
    record = await stage.arena.refused.until(hop=body.hop)
    assert (record["txn"], record["user"], record["jti"]) == (root.txn, "ann", claims_of(root.grant).jti)
    assert (await stage.arena.kinds(root.txn))[-1] == "grant.revoked"


async def test_revoking_an_ancestor_binds_every_descendant(stage: Stage) -> None:
    root = await stage.root()
    calling = asyncio.ensure_future(stage.alice.call(BRIEF, root.txn, root.grant))
    taken = await stage.bob.took(root.txn)
    await stage.bob.result(READ, root.txn, taken.grant)
    await revoke("default", claims_of(root.grant).jti, "ops", "test", stage.arena.lab.broker.ports)
    body = await stage.bob.error(READ, root.txn, taken.grant)
    assert (body.code, body.rule) == ("GRANT_REVOKED", "grant.revoked")
    assert len(stage.files.work(root.txn)) == 1
    await taken.done()
    assert isinstance((await calling)[-1], FINAL)
    assert "hop.closed" in (await stage.arena.kinds(root.txn))[-1]


async def test_revoking_one_branch_leaves_its_sibling_alone(stage: Stage) -> None:
    root = await stage.root()
    calling = [asyncio.ensure_future(stage.alice.call(BRIEF, root.txn, root.grant)) for _ in range(2)]
    one, two = await stage.bob.took(root.txn), await stage.bob.took(root.txn, 2)
    await revoke("default", claims_of(one.grant).jti, "ops", "test", stage.arena.lab.broker.ports)
    assert (await stage.bob.error(READ, root.txn, one.grant)).code == "GRANT_REVOKED"
    await stage.bob.result(READ, root.txn, two.grant)
    for taken in (one, two):
        await taken.done()
    await asyncio.gather(*calling)


async def test_a_root_grant_past_its_life_is_refused(stage: Stage) -> None:
    """Also where its signature was verified, and remembered, while it was good."""
    root = await stage.root(ttl=2)
    await stage.alice.result(READ, root.txn, root.grant)
    await asyncio.sleep(root.exp - stage.arena.lab.broker.ports.clock.now() + 0.02)
    body = await stage.alice.error(READ, root.txn, root.grant)
    assert (body.code, body.rule) == ("GRANT_EXPIRED", "grant.expired")
    assert (await stage.arena.kinds(root.txn)).count("hop.opened") == 1


# Services of the broker are no way round


async def test_only_the_holder_of_the_root_grant_closes_a_txn(stage: Stage) -> None:
    root = await stage.root()
    calling = asyncio.ensure_future(stage.alice.call(BRIEF, root.txn, root.grant))
    taken = await stage.bob.took(root.txn)
    attempts = [
        (stage.bob, root.txn, taken.grant, "OUT_OF_SCOPE", "txn.close"),
        (stage.mallory, root.txn, root.grant, "GRANT_INVALID", "grant.audience"),
        (stage.mallory, "new", None, "OUT_OF_SCOPE", "txn.close"),
        (stage.mallory, root.txn, None, "GRANT_INVALID", "grant.missing"),
    ]
    for who, txn, grant, code, rule in attempts:
        body = await who.error("remit/txn/close", txn, grant)
        assert (body.code, body.rule) == (code, rule)
        assert (await stage.arena.refused.until(hop=body.hop))["resource"] == "remit/txn/close"
    assert "txn.closed" not in await stage.arena.kinds(root.txn)
    await taken.done()
    await calling


async def test_a_service_that_does_not_exist_is_refused(stage: Stage) -> None:
    for op in ("grant/mint", "txn/reopen", "registry/add", "attach/remove"):
        body = await stage.mallory.error(f"remit/{op}", "new", None)
        assert (body.code, body.rule) == ("UNKNOWN_TARGET", "service.unknown")


async def test_closing_a_closed_txn_changes_nothing(stage: Stage) -> None:
    root = await stage.root()
    await close_txn("default", root.txn, "ops", "closed", stage.arena.lab.broker.ports)
    await close_txn("default", root.txn, "ops", "closed", stage.arena.lab.broker.ports)
    assert await stage.arena.kinds(root.txn) == ["txn.opened", "txn.closed"]
