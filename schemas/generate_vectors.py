"""Writes the conformance vectors in ``vectors/``: what another implementation of grants, records and scopes must do.

Everything is fixed (seeds, times, ids), so two runs write the same bytes. Whether a case is valid and which rule
refuses it is written here by hand; ``tests/conformance/test_vectors.py`` holds the implementation against it, and the
files against a fresh run. Use: ``python schemas/generate_vectors.py``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from remit_schemas.base64url import encode
from remit_schemas.budget import ONE_CALL, ZERO, Budget
from remit_schemas.canonical import canonical
from remit_schemas.grant import Actor, Claims, mint, parse
from remit_schemas.keys import CHECKPOINT, KeySet, SigningKey
from remit_schemas.records import GENESIS, Decision, Epochs, Finding, hash_of, parse_record, plain
from remit_schemas.scope import Detail

FOLDER: Final = Path(__file__).parent / "vectors"
ISSUER: Final = "https://remit.example"
NOW: Final = 1_800_000_000
TXN: Final = "4bf92f3577b34da6a3ce929d0e0e4736"
AT: Final = "2027-01-15T08:00:00.000Z"


def key(name: str, use: str = "grant") -> SigningKey:
    """The key of a name: its seed is the SHA-256 of the name."""
    return SigningKey.from_seed(hashlib.sha256(f"remit vectors {name}".encode()).digest(), use)


ISSUING, CHECKPOINTS, STRANGER = key("grant"), key("checkpoint", CHECKPOINT), key("stranger")
JWKS: Final = KeySet([ISSUING.public, CHECKPOINTS.public]).to_jwks()
HEADER: Final = {"alg": "Ed25519", "typ": "dlg+jwt", "kid": ISSUING.kid}

ROOT: Final = Claims(
    iss=ISSUER, sub="ann@example.com", tenant="default", aud="planner", iat=NOW, exp=NOW + 600,
    jti=f"{TXN}.{1:016x}.1", txn=TXN, depth=0, max_depth=4, rec="0" * 64,
    authorization_details=(
        Detail("agent/researcher/*"), Detail("mcp/files/read_file", {"path": {"prefix": "docs/"}}),
    ),
    budget=Budget(500_000, 100_000, 20), labels=("pii", "web"),
)  # fmt: skip


def child_of(parent: Claims, aud: str, **changes: Any) -> Claims:
    """A child that holds all its parent holds, one deeper, with ``changes``."""
    number = parent.depth + 2
    child = msgspec.structs.replace(
        parent, aud=aud, act=Actor(parent.aud, parent.act), depth=parent.depth + 1, jti=f"{TXN}.{number:016x}.1",
        par=parse(mint(parent, ISSUING)).digest, rec=f"{number:064x}",
    )  # fmt: skip
    return msgspec.structs.replace(child, **changes)


CHILD: Final = child_of(ROOT, "researcher", exp=NOW + 60)
GRANDCHILD: Final = child_of(
    CHILD, "files", budget=ONE_CALL, labels=(),
    authorization_details=(Detail("mcp/files/read_file", {"path": {"eq": "docs/a.md"}}),),
)  # fmt: skip


def payload(**changes: Any) -> bytes:
    """The claims of CHILD as JSON, with ``changes``; ``...`` leaves a claim out."""
    values = {**msgspec.to_builtins(CHILD), **changes}
    return json.dumps({k: v for k, v in values.items() if v is not ...}, separators=(",", ":")).encode()


def signed(claims: bytes, header: Any = HEADER, by: SigningKey = ISSUING) -> str:
    """Any claims under any header, rightly signed."""
    head = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    signing_input = f"{encode(head)}.{encode(claims)}"
    return f"{signing_input}.{encode(by.sign(signing_input.encode()))}"


# -- grants -----------------------------------------------------------------------------------------------------------


def valid_grants() -> Iterator[dict[str, Any]]:
    """Each with the claims and the chain that it gives."""
    bound = msgspec.structs.replace(CHILD, cnf={"jkt": ISSUING.kid})
    spaced = json.dumps(msgspec.to_builtins(CHILD), indent=1, sort_keys=True).encode()
    for name, text in (
        ("root", mint(ROOT, ISSUING)),
        ("child", mint(CHILD, ISSUING)),
        ("grandchild", mint(GRANDCHILD, ISSUING)),
        ("key-bound", signed(msgspec.json.encode(bound))),
        ("other-order-and-white-space", signed(spaced, dict(sorted(HEADER.items())))),
        ("issued-thirty-seconds-ahead", signed(payload(iat=NOW + 30))),
        ("empty-scope", signed(payload(authorization_details=[]))),
    ):
        claims = json.loads(parse(text).parts.payload)
        actors, act = [claims["aud"]], claims.get("act")
        while act:
            actors, act = [*actors, act["sub"]], act.get("act")
        yield {
            "name": name, "token": text, "audience": claims["aud"], "expect": "valid",
            "claims": claims, "chain": actors, "digest": parse(text).digest,
        }  # fmt: skip


def invalid_grants() -> Iterator[tuple[str, str, str]]:
    """Name, token, and the rule that refuses it."""
    good = mint(CHILD, ISSUING)
    head, body, signature = good.split(".")
    yield "empty", "", "grant.form"
    yield "two-parts", f"{head}.{body}", "grant.form"
    yield "no-signature", f"{head}.{body}.", "grant.form"
    yield "four-parts", good + ".AAAA", "grant.form"
    yield "padded", good + "==", "grant.form"
    yield "white-space", good + "\n", "grant.form"
    yield "unused-bits", good[:-1] + chr(ord(good[-1]) + 1), "grant.form"
    yield "json-serialisation", json.dumps({"protected": head, "payload": body, "signature": signature}), "grant.form"
    yield "too-large", "A" * 8193, "grant.size"
    for member, value in {
        "crit": ["exp"], "b64": False, "jku": "https://evil.example/", "jwk": STRANGER.public.to_jwk(), "x5u": "https://evil.example/",
        "x5c": [], "cty": "JWT", "zip": "DEF",
    }.items():  # fmt: skip
        yield f"header-{member}", signed(payload(), HEADER | {member: value}), "grant.header"
    yield "header-without-typ", signed(payload(), {"alg": "Ed25519", "kid": ISSUING.kid}), "grant.header"
    yield (
        "header-duplicate",
        signed(payload(), json.dumps(HEADER).replace("{", '{"alg":"none",').encode()),
        "grant.header",
    )
    for alg in ("none", "EdDSA", "HS256", "ed25519"):
        yield f"alg-{alg}", signed(payload(), HEADER | {"alg": alg}), "grant.alg"
    yield "unknown-key", mint(CHILD, STRANGER), "grant.kid"
    yield "signed-by-another", signed(payload(), by=STRANGER), "grant.signature"
    yield "changed-claims", f"{head}.{encode(payload(sub='root'))}.{signature}", "grant.signature"
    yield "short-signature", f"{head}.{body}.{signature[:42]}A", "grant.signature"
    yield "checkpoint-key", signed(payload(), HEADER | {"kid": CHECKPOINTS.kid}, CHECKPOINTS), "grant.key_use"
    yield "typ-JWT", signed(payload(), HEADER | {"typ": "JWT"}), "grant.typ"
    yield "duplicate-claim", signed(payload().replace(b"{", b'{"sub":"root",', 1)), "grant.json"
    yield "nan", signed(payload().replace(b'"depth":1', b'"depth":NaN')), "grant.json"
    yield "large-integer", signed(payload().replace(str(NOW + 60).encode(), b"9007199254740992")), "grant.json"
    for name, rule, change in INVALID_CLAIMS:
        yield name, signed(payload(**change)), rule
    yield "expired-to-the-second", signed(payload(iat=NOW - 60, exp=NOW)), "grant.expired"


INVALID_CLAIMS: Final[tuple[tuple[str, str, dict[str, Any]], ...]] = (
    ("another-issuer", "grant.issuer", {"iss": "https://evil.example"}),
    ("another-audience", "grant.audience", {"aud": "critic"}),
    ("audience-list", "grant.audience", {"aud": ["researcher"]}),
    ("no-exp", "grant.times", {"exp": ...}),
    ("exp-float", "grant.times", {"exp": NOW + 60.5}),
    ("exp-text", "grant.times", {"exp": str(NOW + 60)}),
    ("iat-boolean", "grant.times", {"iat": True}),
    ("exp-before-iat", "grant.times", {"iat": NOW + 30, "exp": NOW + 29}),
    ("issued-in-the-future", "grant.iat", {"iat": NOW + 31}),
    ("unknown-claim", "grant.claims", {"nbf": 0}),
    ("null-claim", "grant.claims", {"cnf": None}),
    ("null-actor", "grant.claims", {"act": {"sub": "planner", "act": None}}),
    ("actor-with-issuer", "grant.claims", {"act": {"sub": "planner", "iss": ISSUER}}),
    ("no-rec", "grant.claims", {"rec": ...}),
    ("budget-without-calls", "grant.claims", {"budget": {"usd_micros": 1, "tokens": 1}}),
    ("budget-negative", "grant.claims", {"budget": {"usd_micros": 1, "tokens": 1, "calls": -1}}),
    ("max-depth-17", "grant.claims", {"max_depth": 17}),
    ("detail-of-another-type", "grant.claims", {"authorization_details": [{"type": "x", "resource": "mcp/a/b"}]}),
    ("detail-without-pattern", "grant.scope", {"authorization_details": [{"resource": "mcp"}]}),
    ("depth-not-actors", "grant.depth", {"depth": 2}),
    ("depth-over-max", "grant.depth", {"max_depth": 0}),
    ("actors-without-parent", "grant.par", {"par": ...}),
    ("parent-without-actors", "grant.par", {"act": ..., "depth": 0}),
    ("labels-star-and-more", "grant.labels", {"labels": ["*", "pii"]}),
    ("jti-of-another-txn", "grant.jti", {"jti": f"{TXN[::-1]}.{2:016x}.1"}),
    ("jti-n-zero", "grant.jti", {"jti": f"{TXN}.{2:016x}.0"}),
)


def code_of(rule: str) -> str:
    """The code that goes with a rule."""
    return {"grant.size": "TOO_LARGE", "bundle.size": "TOO_LARGE", "grant.expired": "GRANT_EXPIRED"}.get(
        rule, "GRANT_INVALID"
    )


def grants() -> dict[str, Any]:
    """Single grants, verified at ``now`` for ``audience``."""
    invalid = [
        {
            "name": name,
            "token": text,
            "audience": "researcher",
            "expect": "invalid",
            "code": code_of(rule),
            "rule": rule,
        }
        for name, text, rule in invalid_grants()
    ]
    return {"v": 1, "issuer": ISSUER, "now": NOW, "jwks": JWKS, "cases": [*valid_grants(), *invalid]}


# -- bundles ----------------------------------------------------------------------------------------------------------


def invalid_links() -> Iterator[tuple[str, dict[str, Any]]]:
    """The rule that refuses, and what makes CHILD break it."""
    yield "bundle.sub", {"sub": "bob@example.com"}
    yield "bundle.tenant", {"tenant": "other"}
    yield "bundle.txn", {"txn": TXN[::-1], "jti": f"{TXN[::-1]}.{2:016x}.1"}
    yield "bundle.jti", {"jti": f"{TXN}.{1:016x}.2"}
    yield "bundle.par", {"par": "A" * 43}
    yield "bundle.actor", {"act": Actor("critic")}
    yield "bundle.act", {"act": Actor("planner", Actor("critic")), "depth": 2}
    yield "bundle.scope", {"authorization_details": (Detail("mcp/files/read_file"),)}
    yield "bundle.scope", {"authorization_details": (Detail("agent/**"),)}
    yield "bundle.budget", {"budget": Budget(500_001, 1, 1)}
    yield "bundle.budget", {"budget": Budget(1, 100_001, 1)}
    yield "bundle.budget", {"budget": Budget(1, 1, 21)}
    yield "bundle.exp", {"exp": NOW + 601}
    yield "bundle.max_depth", {"max_depth": 5}
    yield "bundle.labels", {"labels": ("*",)}
    yield "bundle.labels", {"labels": ("pii", "secret")}
    yield "bundle.cycle", {"aud": "planner"}


def bundles() -> dict[str, Any]:
    """Root to leaf, verified at ``now`` for ``audience``."""
    root, child, grandchild = (mint(claims, ISSUING) for claims in (ROOT, CHILD, GRANDCHILD))
    back = mint(child_of(CHILD, "planner"), ISSUING)
    cases: list[dict[str, Any]] = [
        {"name": "root-only", "tokens": [root], "audience": "planner", "expect": "valid"},
        {"name": "two", "tokens": [root, child], "audience": "researcher", "expect": "valid"},
        {"name": "three", "tokens": [root, child, grandchild], "audience": "files", "expect": "valid"},
        {
            "name": "allowed-cycle", "tokens": [root, child, back], "audience": "planner", "expect": "valid",
            "allowed_cycles": [["researcher", "planner"]],
        },
    ]  # fmt: skip
    refused = [
        (f"{rule.removeprefix('bundle.')}-{n}", [root, mint(msgspec.structs.replace(CHILD, **change), ISSUING)], rule)
        for n, (rule, change) in enumerate(invalid_links(), 1)
    ]
    refused += [
        ("empty", [], "bundle.root"),
        ("no-root", [child, grandchild], "bundle.root"),
        ("one-left-out", [root, grandchild], "bundle.par"),
        ("wrong-order", [child, root], "bundle.root"),
        ("cycle", [root, child, back], "bundle.cycle"),
        ("forged-root", [mint(ROOT, STRANGER), child], "grant.kid"),
        ("too-large", ["A" * 8192] * 8 + ["A"], "bundle.size"),
    ]
    for name, tokens, rule in refused:
        audience = parse(tokens[-1]).claims.aud if rule not in ("bundle.size",) and tokens else "planner"
        cases.append(
            {
                "name": name,
                "tokens": tokens,
                "audience": audience,
                "expect": "invalid",
                "code": code_of(rule),
                "rule": rule,
            }
        )
    wrong = {"expect": "invalid", "code": "GRANT_INVALID", "rule": "grant.audience"}
    cases.append({"name": "for-another", "tokens": [root, child], "audience": "files", **wrong})
    return {"v": 1, "issuer": ISSUER, "now": NOW, "jwks": JWKS, "cases": cases}


# -- records ----------------------------------------------------------------------------------------------------------


def chain_of_records() -> list[dict[str, Any]]:
    """One record of each kind, sealed: a txn with one hop from its opening to its end, a revocation, the end."""
    first, second = f"{1:016x}", f"{2:016x}"
    decision, epochs = Decision("allow", ("starter.grant",), "ef" * 32), Epochs("ef" * 32, 3)
    bodies: tuple[dict[str, Any], ...] = (
        {
            "kind": "txn.opened", "hop": first, "user": "ann@example.com", "agent": "planner", "auth": "local",
            "jti": ROOT.jti, "scope": ROOT.authorization_details, "budget": ROOT.budget, "exp": ROOT.exp,
            "max_depth": 4, "labels": ["pii"],
        },
        {
            "kind": "hop.opened", "hop": second, "parent": first, "caller": "planner",
            "resource": "agent/researcher/brief", "depth": 1, "jti": CHILD.jti, "scope": CHILD.authorization_details,
            "budget": CHILD.budget, "exp": CHILD.exp, "deadline": CHILD.exp * 1000, "max_depth": 4,
            "args_digest": "ab" * 32, "args_size": 17, "definition": "cd" * 32, "decision": decision, "epochs": epochs,
            "findings": [Finding("secret.aws_access_key", "/note")], "redacted": ["/note"],
            "link": f"00-{'a' * 32}-{'b' * 16}-01",
        },
        {"kind": "grant.renewed", "hop": second, "jti": f"{TXN}.{second}.2", "exp": CHILD.exp},
        {
            "kind": "hop.parked", "hop": second, "cost": Budget(3, 0, 0), "spent": Budget(3, 0, 1), "overrun": ZERO,
            "request_digest": "12" * 32, "request_size": 40, "connection": "c" * 22, "reason": "input_required",
            "decision": decision, "labels": ["web"],
        },
        {
            "kind": "hop.resumed", "hop": second, "jti": f"{TXN}.{second}.3", "scope": CHILD.authorization_details,
            "budget": CHILD.budget, "exp": CHILD.exp, "deadline": CHILD.exp * 1000, "max_depth": 4,
            "args_digest": "ab" * 32, "input_digest": "34" * 32, "input_size": 5, "decision": decision, "epochs": epochs,
            "labels": ["pii"],
        },
        {
            "kind": "hop.closed", "hop": second, "outcome": "failed", "cost": Budget(4, 0, 0), "spent": Budget(7, 0, 2),
            "overrun": ZERO, "effect": "happened", "ms": 12,
            "reason": '\u00fcn\u00efcode, "quotes", \u20ac and \U0001f600',
        },
        {"kind": "grant.revoked", "hop": first, "jti": ROOT.jti, "who": "ann@example.com", "why": "enough"},
        {"kind": "txn.closed", "hop": first, "reason": "revoked", "who": "broker", "spent": Budget(7, 0, 2),
         "overrun": ZERO},
    )  # fmt: skip
    chain: list[dict[str, Any]] = []
    for seq, body in enumerate(bodies):
        prev = chain[-1]["hash"] if chain else GENESIS
        common = {"v": 1, "tenant": "default", "txn": TXN, "seq": seq, "at": AT, "prev": prev, "by": "b1"}
        chain.append(resealed(plain(parse_record(msgspec.to_builtins(common | body)))))
    return chain


def resealed(record: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """The record with changes and a hash that fits them."""
    changed = {**record, **changes}
    return {**changed, "hash": hash_of(changed)}


def records() -> dict[str, Any]:
    """Canonical bytes and hashes of records, and sequences of them with the place of the first fault."""
    chain = chain_of_records()
    a, b, c = chain[:3]
    sealed = [
        {"record": r, "canonical": canonical({k: v for k, v in r.items() if k != "hash"}).decode(), "hash": r["hash"]}
        for r in chain
    ]
    broken = (
        ("changed-body", [a, {**b, "depth": 2}, c], 1, "hash"),
        ("changed-and-resealed", [a, resealed(b, depth=2), c], 2, "prev"),
        ("left-out", [a, c], 1, "seq"),
        ("left-out-and-renumbered", [a, resealed(c, seq=1)], 1, "prev"),
        ("swapped", [a, c, b], 1, "seq"),
        ("beginning-cut-off", [b, c], 0, "seq"),
        ("repeated", [a, a, b], 1, "seq"),
        ("no-genesis", [resealed(a, prev="1" * 64)], 0, "prev"),
    )
    chains: list[dict[str, Any]] = [{"name": "whole", "records": chain, "expect": "valid"}]
    chains += [
        {"name": name, "records": found, "expect": "invalid", "seq": at, "fault": fault}
        for name, found, at, fault in broken
    ]
    return {"v": 1, "sealed": sealed, "chains": chains}


# -- scopes and names -------------------------------------------------------------------------------------------------

FILE: Final = "mcp/files/read_file"
DOCS: Final = FILE + '{"path":{"prefix":"docs/"}}'
COVERS: Final[tuple[tuple[list[str], str, dict[str, Any], bool], ...]] = (
    ([FILE], FILE, {}, True),
    ([FILE], FILE, {"path": "anything"}, True),
    ([FILE], "mcp/files/write_file", {}, False),
    (["mcp/files/*"], FILE, {}, True),
    (["mcp/*/read_file"], FILE, {}, True),
    (["mcp/**"], FILE, {}, True),
    (["agent/**"], FILE, {}, False),
    (["agent/a/b", "mcp/**"], FILE, {}, True),
    ([], FILE, {}, False),
    ([DOCS], FILE, {"path": "docs/a.md"}, True),
    ([DOCS], FILE, {"path": "docs/../etc/passwd"}, False),
    ([DOCS], FILE, {"path": "etc/passwd"}, False),
    ([DOCS], FILE, {}, False),
    ([DOCS], FILE, {"path": 7}, False),
    ([FILE + '{"path":{"optional":true,"prefix":"docs/"}}'], FILE, {}, True),
    ([FILE + '{"path":{"optional":true,"prefix":"docs/"}}'], FILE, {"path": "x"}, False),
    ([FILE + '{"n":{"eq":1}}'], FILE, {"n": 1}, True),
    ([FILE + '{"n":{"eq":1}}'], FILE, {"n": True}, False),
    ([FILE + '{"n":{"eq":1}}'], FILE, {"n": "1"}, False),
    ([FILE + '{"n":{"in":[1,2]}}'], FILE, {"n": 2}, True),
    ([FILE + '{"n":{"range":{"max":5,"min":1}}}'], FILE, {"n": 5}, True),
    ([FILE + '{"n":{"range":{"max":5,"min":1}}}'], FILE, {"n": 6}, False),
    ([FILE + '{"s":{"max_len":3}}'], FILE, {"s": "abcd"}, False),
    ([FILE + '{"s":{"any":true}}'], FILE, {}, False),
)  # fmt: skip
MEETS: Final[tuple[tuple[list[str], list[str], list[str]], ...]] = (
    (["mcp/files/*"], [FILE], [FILE]),
    (["mcp/files/*"], ["mcp/*/read_file"], [FILE]),
    (["mcp/**"], ["agent/**"], []),
    (["mcp/a/b", "mcp/c/d"], ["mcp/c/*"], ["mcp/c/d"]),
    ([FILE], [DOCS], [DOCS]),
    ([DOCS], [FILE + '{"path":{"prefix":"docs/a"}}'], [FILE + '{"path":{"prefix":"docs/a"}}']),
    ([DOCS], [FILE + '{"path":{"prefix":"etc/"}}'], []),
    ([FILE + '{"n":{"in":[1,2,3]}}'], [FILE + '{"n":{"range":{"min":3}}}'], [FILE + '{"n":{"eq":3}}']),
    ([FILE + '{"n":{"eq":1}}'], [FILE + '{"m":{"eq":2}}'], [FILE + '{"m":{"eq":2},"n":{"eq":1}}']),
)  # fmt: skip
WITHIN: Final[tuple[tuple[list[str], list[str], bool], ...]] = (
    ([FILE], ["mcp/files/*"], True),
    (["mcp/files/*"], [FILE], False),
    ([FILE], [FILE], True),
    ([], [FILE], True),
    ([FILE], [], False),
    ([DOCS], [FILE], True),
    ([FILE], [DOCS], False),
    ([FILE + '{"path":{"eq":"docs/a"}}'], [DOCS], True),
    ([FILE + '{"path":{"eq":"docs/../a"}}'], [DOCS], False),
    ([FILE + '{"path":{"optional":true,"prefix":"docs/"}}'], [DOCS], False),
    ([FILE, "agent/a/b"], ["mcp/**"], False),
)  # fmt: skip
MALFORMED_SCOPES: Final = (
    "", "mcp", "mcp/files", "mcp/files/read_*", "mcp/**/x", "db/a/b", "mcp/Files/a",
    FILE + '{"path":{"prefix":"../"}}', FILE + '{"path":{"regex":".*"}}', FILE + '{"path":"docs/"}',
    FILE + '{"n":{"range":[1,5]}}', FILE + '{"n":{"eq":9007199254740992}}',
)  # fmt: skip
NAMES: Final = {
    "read_file": "read_file", "UPPER-9": "UPPER-9", "-": "-", "$resource": "$resource", "$": "$", "x$y": "x=24y",
    "a.b": "a=2Eb",
    "a b": "a=20b", "a=b": "a=3Db", "a>b": "a=3Eb", "caf\u00e9": "caf=C3=A9", "\u65e5\u672c": "=E6=97=A5=E6=9C=AC",
}  # fmt: skip
NO_NAME: Final = ("a.b", "=6", "=6G", "=61", "caf=c3=a9", "=C3", "a b", "x$y", "=24resource", "é")


def scopes() -> dict[str, Any]:
    """Details as on the command line: ``<pattern>{constraints}``."""
    return {
        "v": 1,
        "covers": [{"scope": s, "resource": r, "args": args, "covers": covers} for s, r, args, covers in COVERS],
        "meets": [{"a": a, "b": b, "meet": meet} for a, b, meet in MEETS],
        "within": [{"a": a, "b": b, "within": within} for a, b, within in WITHIN],
        "malformed": list(MALFORMED_SCOPES),
    }


def names() -> dict[str, Any]:
    """Segments of a name and their one token in a NATS subject, and texts that are nobody's token."""
    return {
        "v": 1,
        "tokens": [{"name": name, "token": token} for name, token in NAMES.items()],
        "no_token": list(NO_NAME),
    }


ABOUT: Final = {
    "grants": (
        "Verify each token against jwks and issuer, for the case's audience, at now (Unix seconds). A valid "
        "one gives these claims, this chain (newest actor first) and this digest (what a child names in par); "
        "an invalid one is refused with this code and rule."
    ),
    "bundles": (
        "Verify each list of tokens, root first, against jwks and issuer, the leaf for the case's audience, "
        "at now. allowed_cycles are (caller, callee) pairs."
    ),
    "records": (
        "canonical is the RFC 8785 form of a record without hash, and hash its lower-case hex SHA-256. Of an "
        "invalid chain, seq is the index of the first record at fault and fault the first check that fails "
        "there: hash, then seq, then prev."
    ),
    "scopes": (
        "A scope is a list of details written as pattern{constraints}. covers: is the call permitted; meets: "
        "the normal form of both together, either way round; within: is a within b; malformed: refused as "
        "text."
    ),
    "names": ("A name has exactly one token in a NATS subject; no_token are texts that are no name's token."),
}


def generate() -> dict[str, str]:
    """The text of every file, by name."""
    made = {"grants": grants, "bundles": bundles, "records": records, "scopes": scopes, "names": names}
    return {
        f"{name}.json": json.dumps({"about": ABOUT[name], **make()}, indent=1, ensure_ascii=True) + "\n"
        for name, make in made.items()
    }


def main() -> None:
    """Write them."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in generate().items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
