"""Evidence for tests: a closed txn of three hops, its records sealed and its grants signed as a broker would."""

from __future__ import annotations

import json
from typing import Any

from remit_broker.core import merkle, notes
from remit_broker.core.evidence import MINTS, export
from remit_broker.core.notes import LEDGER, REFUSALS, Checkpoint
from remit_broker.core.sealing import Place, Proofs, leaf
from remit_schemas import approval
from remit_schemas.budget import Budget
from remit_schemas.claims import Actor, Claims
from remit_schemas.grant import mint, parse
from remit_schemas.keys import KeySet, SigningKey
from remit_schemas.records import hash_of, plain
from remit_schemas.scope import Detail
from remit_schemas.veil import veil_of
from tests.support.story import LARGE, LATER, ROOT, TXN, Story, hop_id, opened, refused

KEY = SigningKey.from_seed(b"\x01" * 32)
OTHER = SigningKey.from_seed(b"\x02" * 32)
SEAL = SigningKey.from_seed(b"\x03" * 32, "checkpoint")
ISSUER = "http://127.0.0.1:7480"
TRUSTED = KeySet([KEY.public, SEAL.public])
SCOPE = (Detail(resource="agent/researcher/brief"), Detail(resource="mcp/git/git_log"))
SMALL = Budget(1000, 100, 5)
CHILD, GRANDCHILD, SECOND = hop_id(1), hop_id(2), hop_id(3)


class Case:
    """A txn whose records and grants go together; :meth:`evidence` is what would be exported."""

    def __init__(self, key: SigningKey = KEY) -> None:
        self.key = key
        self.story = Story(opened(scope=SCOPE))
        self.grants: dict[str, str] = {}
        """The newest grant of each hop."""
        self.tokens: dict[str, str] = {}
        """Every grant by its id."""
        self._minted(ROOT, None)

    def open(self, hop: str, parent: str, resource: str, budget: Budget = SMALL, **changes: Any) -> None:
        """A hop and its grant."""
        self.story.open(hop, parent, budget, scope=SCOPE, resource=resource, **changes)
        self._minted(hop, parent)

    def renew(self, hop: str, parent: str, exp: int) -> None:
        """The next grant of a hop."""
        self.story.renew(hop, exp)
        self._minted(hop, parent)

    def resume(self, hop: str, parent: str, budget: Budget = SMALL, **changes: Any) -> None:
        """A parked hop goes on with the next grant."""
        self.story.resume(hop, budget, **changes)
        self._minted(hop, parent)

    def approve(self, name: str, parent: str, resource: str, said: dict[str, Any] | None = None) -> None:
        """Somebody approves what :meth:`open` opens under ``parent``; ``said`` are other claims of the signed decision."""
        self.story.ask(name, parent, resource=resource, scope=SCOPE)
        asked = self.story.fold.requests[name].asked
        claims: dict[str, Any] = {
            "iss": "http://127.0.0.1:7480", "tenant": "default", "txn": TXN, "id": name, "request": asked.hash,
            "resource": resource, "args_digest": asked.args_digest, "chain": asked.chain, "revision": "rev",
            "verdict": "approve", "sub": "eve", "who": "local:eve", "auth": "local", "iat": 1_800_000_000,
            "exp": min(LATER, self.story.fold.totals.exp),
        }  # fmt: skip
        token = approval.sign(approval.Decided(**{**claims, **(said or {})}), self.key)
        self.story.decide(name, token=token)

    def _minted(self, hop: str, parent: str | None) -> None:
        claims = self.claims(len(self.story.records) - 1, parent)
        self.grants[hop] = self.tokens[claims.jti] = mint(claims, self.key)

    def claims(self, index: int, parent: str | None) -> Claims:
        """The claims of the grant that record ``index`` names."""
        record = self.story.records[index]
        before = [
            each
            for each in self.story.records[: index + 1]
            if each["hop"] == record["hop"] and not each["kind"].startswith("approval.")
        ]
        record = {key: value for each in before for key, value in each.items()}
        above = parse(self.grants[parent]) if parent else None
        node = self.story.fold.nodes[record["hop"]]
        return Claims(
            iss="http://127.0.0.1:7480", sub="ann", tenant="default", aud=node.callee, iat=1_800_000_000,
            exp=record["exp"], jti=record["jti"], txn=TXN, depth=record.get("depth", 0), max_depth=record["max_depth"],
            rec=record["hash"], authorization_details=SCOPE, budget=Budget(**record["budget"]), labels=("*",),
            act=Actor(above.claims.aud, above.claims.act) if above else None, par=above.digest if above else None,
        )  # fmt: skip

    def evidence(self) -> dict[str, Any]:
        """The file, as JSON values."""
        entries = [
            {"record": record, "grant": self.tokens[record["jti"]] if record["kind"] in MINTS else None}
            for record in self.story.records
        ]  # fmt: skip
        under = {"txn": TXN, "parent": ROOT, "user": "ann"}
        refusals = [plain(refused(hop_id(9), **under)), plain(refused(hop_id(10), **under, message="other"))]
        keys = KeySet([self.key.public, SEAL.public]).to_jwks()
        sealed = proofs(self.story.records, refusals)
        value: dict[str, Any] = json.loads(json.dumps(export(entries, json.loads(json.dumps(refusals)), keys, sealed)))
        return value


class Log:
    """A log of records among others, and what it proves."""

    def __init__(self, kind: str, records: list[dict[str, Any]], key: SigningKey = SEAL) -> None:
        self.leaves = [merkle.leaf_hash(b"before"), *map(leaf, records), merkle.leaf_hash(b"after")]
        self.tiles = merkle.append(0, {}, self.leaves)
        self.checkpoint = Checkpoint(
            notes.origin(ISSUER, kind), len(self.leaves), merkle.root(self.tile, len(self.leaves))
        )
        self.note = notes.sign(self.checkpoint, key)

    def tile(self, level: int, index: int) -> bytes:
        """The hashes of a tile."""
        return self.tiles[level, index]

    def place(self, record: int) -> Place:
        """The proof of a record."""
        return Place(record + 1, merkle.inclusion(self.tile, record + 1, len(self.leaves)))


def proofs(records: list[dict[str, Any]], refusals: list[dict[str, Any]], key: SigningKey = SEAL) -> Proofs:
    """What logs of just these records prove."""
    log, refused = Log(LEDGER, records, key), Log(f"{REFUSALS}1", refusals, key)
    return Proofs(
        checkpoint=log.note,
        proof=log.place(len(records) - 1),
        refusal_checkpoint=refused.note,
        refusal_proofs=[refused.place(index) for index in range(len(refusals))],
    )


def reproved(evidence: dict[str, Any], key: SigningKey = SEAL) -> None:
    """Give the file the proofs that its content calls for: what whoever holds the key for checkpoints could do."""
    evidence.update(json.loads(json.dumps(proofs(evidence["records"], evidence["refusals"], key).told())))


def closed_case(key: SigningKey = KEY) -> Case:
    """Two hops inside one another, one beside them, all closed, the txn too."""
    case = Case(key)
    case.open(CHILD, ROOT, "agent/researcher/brief", Budget(5000, 500, 6))
    case.open(GRANDCHILD, CHILD, "mcp/git/git_log", Budget(1000, 100, 2))
    case.story.close(GRANDCHILD, Budget(500, 0, 0))
    case.story.close(CHILD)
    case.open(SECOND, ROOT, "agent/critic/review")
    case.story.close(SECOND)
    case.story.end()
    return case


def long_case() -> Case:
    """A hop whose grant is renewed, which is parked and resumed, with a call under each of its grants that count."""
    case = Case()
    case.open(CHILD, ROOT, "agent/researcher/brief", Budget(5000, 500, 6), exp=1_800_000_060)
    case.renew(CHILD, ROOT, 1_800_000_120)
    case.open(GRANDCHILD, CHILD, "mcp/git/git_log", Budget(1000, 100, 2), exp=1_800_000_060)
    case.renew(GRANDCHILD, CHILD, 1_800_000_100)
    case.story.close(GRANDCHILD, Budget(500, 0, 0))
    case.story.park(CHILD)
    case.resume(CHILD, ROOT, Budget(700, 0, 3), exp=1_800_000_180)
    case.open(SECOND, CHILD, "mcp/git/git_log", Budget(100, 0, 1), exp=1_800_000_180)
    case.story.close(SECOND)
    case.story.close(CHILD)
    case.story.end()
    return case


def resealed(records: list[dict[str, Any]], start: int) -> None:
    """Give every record from ``start`` on the hash and ``prev`` that its new content calls for: what a forger would do."""
    for index in range(start, len(records)):
        if index:
            records[index].update(prev=records[index - 1]["hash"], veil=veil_of(records[index - 1]))
        records[index]["hash"] = hash_of(records[index])


__all__ = [
    "CHILD",
    "GRANDCHILD",
    "ISSUER",
    "KEY",
    "LARGE",
    "OTHER",
    "SEAL",
    "SECOND",
    "TRUSTED",
    "Case",
    "Log",
    "closed_case",
    "long_case",
    "proofs",
    "reproved",
    "resealed",
]
