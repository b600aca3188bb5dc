#!/usr/bin/env python3
"""Check an evidence file with the published keys alone. One file, nothing but Python's standard library, no part of the broker.

    python3 remit_verify.py EVIDENCE --keys JWKS [--witness VKEY]… [--tsa PEM] [--json]

It was written apart from the broker's own check (``remit evidence verify``), so that neither has to be believed. It looks at what
matters to the proof, and not at what a record means: accounts and scopes are judged by the broker's check. Ed25519 is that of
RFC 8032 §6, written out below: slow (some milliseconds each), and fine for verifying, which handles no secret.

Trust nothing in the evidence file: keys come from ``--keys``, the JWKS as you downloaded it from the issuer, or were given it.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import hmac
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

# --- Ed25519 (RFC 8032 §5.1, §6) ------------------------------------------------------------------------------------

P = 2**255 - 19
L = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, P - 2, P) % P
ROOT_OF_MINUS_ONE = pow(2, (P - 1) // 4, P)
GX = 15112221349535400772501151409588531511454012693041857206046113283949847762202
GY = 46316835694926478169428394003475163141307993866256225615783033603165251855960

Point = tuple[int, int, int, int]
Keys = dict[str, tuple[str, bytes]]
Evidence = dict[str, Any]


def _add(p: Point, q: Point) -> Point:
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % P, (p[1] + p[0]) * (q[1] + q[0]) % P
    c, d = 2 * p[3] * q[3] * D % P, 2 * p[2] * q[2] % P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % P, g * h % P, f * g % P, e * h % P


def _times(number: int, point: Point) -> Point:
    result: Point = (0, 1, 1, 0)
    while number:
        if number & 1:
            result = _add(result, point)
        point, number = _add(point, point), number >> 1
    return result


def _same(p: Point, q: Point) -> bool:
    return (p[0] * q[2] - q[0] * p[2]) % P == 0 and (p[1] * q[2] - q[1] * p[2]) % P == 0


def _point(data: bytes) -> Point | None:
    """The point of 32 bytes, or None. An encoding that is not the one of its point is none."""
    y, sign = int.from_bytes(data, "little") & (1 << 255) - 1, data[31] >> 7
    if y >= P:
        return None
    square = (y * y - 1) * pow(D * y * y + 1, P - 2, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * ROOT_OF_MINUS_ONE % P
    if (x * x - square) % P or (x == 0 and sign):
        return None
    x = P - x if x & 1 != sign else x
    return x, y, 1, x * y % P


def ed25519(key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether ``signature`` is ``key``'s over ``message``. Strict: S < L, and no key or R of small order."""
    if len(key) != 32 or len(signature) != 64:
        return False
    a, r, s = _point(key), _point(signature[:32]), int.from_bytes(signature[32:], "little")
    if a is None or r is None or s >= L or any(_same(_times(8, point), (0, 1, 1, 0)) for point in (a, r)):
        return False
    k = int.from_bytes(hashlib.sha512(signature[:32] + key + message).digest(), "little") % L
    return _same(_times(s, (GX, GY, 1, GX * GY % P)), _add(r, _times(k, a)))


# --- JSON as it is accepted and as it is hashed (RFC 8259, RFC 8785) --------------------------------------------------


class Bad(Exception):  # noqa: N818
    """What does not hold, in words."""


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise Bad("an object has a name twice")
    return value


def _whole(text: str) -> int:
    if len(text) > 17 or abs(int(text)) > 2**53 - 1:
        raise Bad("an integer beyond 2^53-1")
    return int(text)


def _no(text: str) -> Any:
    raise Bad(f"{text[:20]} is no whole number: records have no others")


def parse(data: bytes) -> Any:
    """Strict JSON: no name twice, whole numbers only, Unicode that has bytes."""
    try:
        value = json.loads(
            data.decode(), object_pairs_hook=_pairs, parse_int=_whole, parse_float=_no, parse_constant=_no
        )
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise Bad("it is no JSON document") from None
    return value


def canonical(value: Any) -> bytes:
    """RFC 8785, for values without fractions."""
    if isinstance(value, dict):
        names = sorted(value, key=lambda name: name.encode("utf-16-be"))
        return b"{" + b",".join(canonical(name) + b":" + canonical(value[name]) for name in names) + b"}"
    if isinstance(value, list):
        return b"[" + b",".join(map(canonical, value)) + b"]"
    return json.dumps(value, ensure_ascii=False).encode()


def b64(text: str, *, url: bool = False) -> bytes:
    """Base64 in its one form."""
    data = base64.b64decode(text + "=" * (-len(text) % 4 if url else 0), altchars=b"-_" if url else None, validate=True)
    again = (base64.urlsafe_b64encode(data).rstrip(b"=") if url else base64.b64encode(data)).decode()
    if again != text:
        raise ValueError("not the one form")
    return data


# --- Keys, tokens, checkpoints ----------------------------------------------------------------------------------------


def keys_of(jwks: Any) -> Keys:
    """By kid: what the key may sign, and its 32 bytes."""
    found: Keys = {}
    for jwk in jwks["keys"]:
        if (jwk.get("kty"), jwk.get("crv"), jwk.get("alg", "Ed25519")) != ("OKP", "Ed25519", "Ed25519") or "d" in jwk:
            raise Bad("a key set of Ed25519 public keys is wanted")
        found[jwk["kid"]] = (jwk.get("remit_use", "grant"), b64(jwk["x"], url=True))
    if len({raw for _, raw in found.values()}) != len(jwks["keys"]):
        raise Bad("a key is there twice: each signs one kind of statement")
    return found


def token(text: str, typ: str, keys: Keys) -> tuple[dict[str, Any], str]:
    """The claims of a compact JWS (RFC 7515) that a trusted key for grants signed, and the digest of what was signed."""
    try:
        head, body, signature = text.split(".")
        header, claims = parse(b64(head, url=True)), parse(b64(body, url=True))
        signed = b64(signature, url=True)
    except (ValueError, AttributeError):
        raise Bad("it is no token") from None
    use, raw = keys.get(header.get("kid"), ("", b""))
    if set(header) != {"alg", "typ", "kid"} or (header["alg"], header["typ"]) != ("Ed25519", typ) or use != "grant":
        raise Bad("its header names no trusted key for it")
    if not ed25519(raw, f"{head}.{body}".encode(), signed):
        raise Bad("it is not signed by the key that it names")
    digest = hashlib.sha256(f"{head}.{body}".encode()).digest()
    return claims, base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


def checkpoint(note: Any, kind: str, keys: Keys) -> tuple[str, int, bytes, str]:
    """(name, size, root, text) of a signed note (C2SP signed-note, tlog-checkpoint) that a trusted key for checkpoints signed."""
    try:
        text, _, signatures = note.rpartition("\n\n")
        text += "\n"
        name, size, root = text.split("\n")[:3]
        lines = [line.removeprefix("\u2014 ").split(" ") for line in signatures.split("\n") if line]
        signed = [(signer, b64(data)) for signer, data in lines]
        count, top = int(size) if re.fullmatch(r"0|[1-9][0-9]{0,17}", size) else -1, b64(root)
    except (ValueError, AttributeError):
        raise Bad("it is no checkpoint") from None
    if count < 0 or len(top) != 32 or not re.fullmatch(r".+/remit/" + kind, name):
        raise Bad(f"it is no checkpoint of the {kind.partition('/')[0]}")
    for use, raw in keys.values():
        mark = hashlib.sha256(name.encode() + b"\n\x01" + raw).digest()[:4]
        for signer, data in signed:
            if use == "checkpoint" and (signer, data[:4]) == (name, mark) and ed25519(raw, text.encode(), data[4:]):
                return name, count, top, text
    raise Bad("no trusted key for checkpoints signed it")


def included(record: dict[str, Any], proof: Any, size: int, root: bytes) -> int:
    """Where the record stands in the log, by RFC 9162 §2.1.3.2."""
    try:
        index, steps = proof["index"], [b64(step) for step in proof["hashes"]]
    except (ValueError, TypeError, KeyError):
        raise Bad("there is no proof of it") from None
    here, last, found = index, size - 1, hashlib.sha256(b"\x00" + canonical(record)).digest()
    if type(index) is not int or not 0 <= index < size:
        raise Bad("the proof is of no place in the log")
    for step in steps:
        if last == 0:
            raise Bad("it is not under the checkpoint")
        left = here & 1 or here == last
        found = hashlib.sha256(b"\x01" + (step + found if left else found + step)).digest()
        while left and not here & 1 and here:
            here, last = here >> 1, last >> 1
        here, last = here >> 1, last >> 1
    if last or found != root:
        raise Bad("it is not under the checkpoint")
    return index


def cosignature(line: str, text: str, vkey: str) -> int | None:
    """When the witness of a verifier key (``name+id+base64``) signed the checkpoint, in Unix seconds; None where it did not."""
    name, _, rest = vkey.partition("+")
    raw = b64(rest.partition("+")[2])
    signer, _, data = line.removeprefix("\u2014 ").partition(" ")
    mark = hashlib.sha256(name.encode() + b"\n" + raw).digest()[:4]
    signed = b64(data)
    if raw[:1] != b"\x04" or (signer, signed[:4]) != (name, mark) or len(signed) != 76:
        return None
    at = int.from_bytes(signed[4:12], "big")
    return at if ed25519(raw[1:], f"cosignature/v1\ntime {at}\n{text}".encode(), signed[12:]) else None


# --- The checks -------------------------------------------------------------------------------------------------------

PERSONAL = {
    "txn.opened": ("user", "auth", "token", "issuer", "roles", "groups"), "hop.opened": ("facts.roles", "facts.groups"),
    "hop.parked": ("reason",), "hop.closed": ("reason",), "approval.requested": ("user", "reason"),
    "approval.decided": ("user", "who", "auth", "reason", "token"), "grant.revoked": ("who", "why"), "txn.closed": ("who",),
}  # fmt: skip
Closed = dict[int, dict[str, str]]


def withheld(evidence: Evidence) -> Closed:
    """By number, of each record that is shown veiled, the commitments that stand in the place of its personal fields."""
    found: Closed = {}
    for number, record in enumerate(evidence["records"]):
        for field in PERSONAL.get(record.get("kind"), ()):
            name, _, inner = field.partition(".")
            value = record.get(name)
            if inner:
                value = value.get(inner) if isinstance(value, dict) else None
            if isinstance(value, dict):
                if set(value) != {"withheld"} or record.get("blind") != "" or number == len(evidence["records"]) - 1:
                    raise Bad(f"record {number}: what stands for its {field} is no commitment")
                found.setdefault(number, {})[field] = value["withheld"]
    return found


def personal(evidence: Evidence) -> str:
    """What is disclosed of people is what the records commit to: HMAC-SHA-256 under the salt that is shown with each."""
    if "personal" not in evidence:
        return "nothing is withheld"
    closed, opened = withheld(evidence), 0
    for number, each in enumerate(evidence["personal"]):
        place, field = each["record"], each["field"]
        commitment = closed.get(place, {}).pop(field, None) if type(place) is int else None
        salt = b64(each["salt"], url=True)
        if set(each) != {"record", "field", "salt", "text"} or commitment is None or len(salt) != 32:
            raise Bad(f"disclosure {number}: it opens no field that is withheld, or one that was opened before")
        if hmac.new(salt, each["text"].encode(), "sha256").hexdigest() != commitment:
            raise Bad(f"disclosure {number}: it is not what record {place} commits to")
        parse(each["text"].encode())
        opened += 1
    places = [f"{number}.{field}" for number, fields in closed.items() for field in fields]
    return f"{len(places)} withheld ({', '.join(places) or 'none'}); {opened} disclosed, as the records commit to them"


def nameless(evidence: Evidence) -> bool:
    """Whether the file withholds whose task it is: then it has no grants, each of which names them."""
    opened = [each.get("record") for each in evidence.get("personal", []) if each.get("field") == "user"]
    kinds = [evidence["records"][n].get("kind") for n in opened if type(n) is int and 0 <= n < len(evidence["records"])]
    owned = {"txn.opened", "approval.requested"} & set(kinds)
    return "user" in withheld(evidence).get(0, {}) and not owned


HOPS = ("hop.parked", "hop.resumed", "hop.closed", "grant.renewed")
MINTS = ("txn.opened", "hop.opened", "hop.resumed", "grant.renewed")


def records(evidence: Evidence) -> str:
    """Every record is as it was sealed and in its place, of one txn, and nothing follows its end.

    The hash of a veiled record is not that of what is shown: the record after it names the digest of what is shown, as ``veil``.
    """
    before, veil = "0" * 64, ""
    closed = withheld(evidence)
    opened: set[str] = set()
    ended: set[str] = set()
    for number, record in enumerate(evidence["records"]):
        content = {name: value for name, value in record.items() if name != "hash"}
        kind, hop = record.get("kind"), record.get("hop")
        wrong = (
            "the one before it is not as this one says" if veil and record.get("veil") != veil
            else "its hash is not that of its content"
            if number not in closed and record.get("hash") != hashlib.sha256(canonical(content)).hexdigest()
            else "it does not follow the one before it" if (record.get("seq"), record.get("prev")) != (number, before)
            else "it is of another txn" if (record.get("txn"), record.get("tenant"))
            != (evidence["txn"], evidence["records"][0].get("tenant"))
            else "the first record opens the txn, and no other" if (kind == "txn.opened") != (number == 0)
            else "nothing follows txn.closed" if "txn" in ended
            else "its hop is not open" if kind in HOPS and hop not in opened - ended
            else "its hop was there before" if kind == "hop.opened" and (hop in opened or record.get("parent") not in opened - ended)
            else "a hop is open still" if kind == "txn.closed" and opened - ended - {evidence["records"][0]["hop"]}
            else ""
        )  # fmt: skip
        if wrong:
            raise Bad(f"record {number}: {wrong}")
        before = record["hash"]
        veil = hashlib.sha256(canonical(record)).hexdigest() if number in closed else ""
        opened |= {hop} if kind in ("txn.opened", "hop.opened") else set()
        ended |= {hop} if kind == "hop.closed" else {"txn"} if kind == "txn.closed" else set()
    return f"{len(evidence['records'])} records: hashes, order, hops" + (
        f", {len(closed)} of them veiled" if closed else ""
    )


def grants(evidence: Evidence, keys: Keys) -> str:
    """Each record that mints a grant has it here, signed, and each is no wider in budget, time and depth than the one above it."""
    if nameless(evidence):
        if evidence["grants"]:
            raise Bad("grants name the user, who is withheld")
        return "withheld, since each names the user: what binds the records is the checkpoint"
    minting = {record["jti"]: record for record in evidence["records"] if record["kind"] in MINTS}
    parents = {record["hop"]: record["parent"] for record in evidence["records"] if record["kind"] == "hop.opened"}
    found: dict[int, tuple[dict[str, Any], str, str]] = {}
    of_hop: dict[str, dict[str, Any]] = {}
    for number, text in enumerate(evidence["grants"]):
        try:
            claims, digest = token(text, "dlg+jwt", keys)
            record = minting.pop(claims["jti"])
        except KeyError:
            raise Bad(f"grant {number}: no record names it, or it is there twice") from None
        except Bad as no:
            raise Bad(f"grant {number}: {no}") from None
        said = ("rec", "hash"), ("jti", "jti"), ("txn", "txn"), ("tenant", "tenant"), ("exp", "exp")
        if other := [claim for claim, name in said if claims.get(claim) != record.get(name)]:
            raise Bad(f"grant {number}: its {other[0]} is not that of record {record['seq']}")
        found[record["seq"]] = claims, digest, record["hop"]
    if minting:
        raise Bad(f"the grant of record {min(record['seq'] for record in minting.values())} is missing")
    for number, (claims, digest, hop) in sorted(found.items()):
        above = of_hop.get(parents.get(hop, ""), {})
        of_hop.setdefault(hop, {})[digest] = claims
        if number == 0:
            continue
        parent = above.get(str(claims.get("par")))
        if parent is None:
            raise Bad(f"record {number}: its grant names no grant above it")
        actors = [claims.get("act", {}).get("sub"), claims.get("act", {}).get("act")]
        wider = (
            any(claims[name] != parent[name] for name in ("iss", "sub", "tenant", "txn"))
            or actors != [parent["aud"], parent.get("act")]
            or claims["depth"] != parent["depth"] + 1
            or claims["exp"] > parent["exp"] or claims["max_depth"] > parent["max_depth"]
            or any(claims["budget"][unit] > parent["budget"][unit] for unit in ("usd_micros", "tokens", "calls"))
        )  # fmt: skip
        if wider:
            raise Bad(f"record {number}: its grant is not a narrowing of the one above it")
    return f"{len(found)} grants: signatures, the records they name, and that none is wider than the one above it"


def approvals(evidence: Evidence, keys: Keys) -> str:
    """Each decision is signed, and about the request that the records say."""
    decided, closed, said_of = (
        0,
        0,
        {(each.get("record"), each.get("field")): each for each in evidence.get("personal", [])},
    )
    for number, shown in enumerate(evidence["records"]):
        if shown["kind"] == "approval.decided":
            fields = withheld(evidence).get(number, {})
            told = {
                field: parse(said_of[number, field]["text"].encode()) for field in fields if (number, field) in said_of
            }
            record = {**shown, **told}
            if isinstance(record["token"], dict):
                closed += 1
                continue
            try:
                claims, _ = token(record["token"], "remit-approval+jwt", keys)
            except Bad as no:
                raise Bad(f"record {record['seq']}: {no}") from None
            said = [(claims.get(name), record.get(name)) for name in ("txn", "id", "verdict", "who", "request", "exp")]
            if any(one != other for one, other in said):
                raise Bad(f"record {record['seq']}: its token says something else")
            decided += 1
    return f"{decided} signed decisions" + (f", and {closed} whose signature is withheld" if closed else "")


def log(evidence: Evidence, keys: Keys) -> str:
    """The last record is under the checkpoint."""
    name, size, root, _ = checkpoint(evidence.get("checkpoint"), "ledger", keys)
    index = included(evidence["records"][-1], evidence.get("proof"), size, root)
    return f"the last record is number {index} of {size} in {name}, and covers all before it"


def complete(evidence: Evidence) -> str:
    """Whether anything could have followed."""
    closed = evidence["records"][-1]["kind"] == "txn.closed"
    if evidence.get("complete") is not closed:
        raise Bad("the file says otherwise than its last record")
    return "closed: nothing can follow" if closed else "no completeness proof: still open, more may have followed"


COMMITS = {
    "hop.opened": ("args_digest",), "hop.resumed": ("input_digest",), "hop.parked": ("request_digest", "released_digest"),
    "hop.closed": ("result_digest", "released_digest"),
}  # fmt: skip


def payloads(evidence: Evidence) -> str:
    """Contents that were disclosed are those that the records commit to: HMAC-SHA-256 under the salt that is shown with each."""
    of, told, opened = evidence["records"], evidence.get("payloads"), set()
    made = sum(bool(record.get(name)) for record in of for name in COMMITS.get(record["kind"], ()))
    for number, each in enumerate(told or []):
        place, field = each["record"], each["field"]
        if set(each) != {"record", "field", "salt", "text"} or type(place) is not int or not 0 <= place < len(of):
            raise Bad(f"payload {number}: it names no record of the file")
        if field not in COMMITS.get(of[place]["kind"], ()) or (place, field) in opened:
            raise Bad(f"payload {number}: record {place} has no commitment of that name, or it is there twice")
        salt = b64(each["salt"], url=True)
        if len(salt) != 32 or hmac.new(salt, each["text"].encode(), "sha256").hexdigest() != of[place][field]:
            raise Bad(f"payload {number}: it is not what record {place} commits to")
        opened.add((place, field))
    return f"{len(opened)} disclosed, as the records commit to them; {made - len(opened)} withheld"


def rules(evidence: Evidence) -> str:
    """The texts of rules are those of the revisions that the records name."""
    sets = evidence.get("policies") or {}
    for revision, texts in sets.items():
        if hashlib.sha256(canonical(sorted([name, text] for name, text in texts.items()))).hexdigest() != revision:
            raise Bad(f"revision {revision}: these are not its texts")
    return f"{len(sets)} policy sets as they were"


def refusals(evidence: Evidence, keys: Keys) -> str:
    """Each is as it was sealed, of this txn, and under the checkpoint of the refusals."""
    told, proofs = evidence["refusals"], evidence.get("refusal_proofs")
    if not isinstance(proofs, list) or len(proofs) != len(told):
        raise Bad("there is not one proof for each refusal")
    if not told and "personal" in evidence:
        return "left out, since they name people; how many there were is not proved"
    if not told:
        return "none; that there were none is not proved"
    _, size, root, _ = checkpoint(evidence.get("refusal_checkpoint"), "refusals/[0-9]+", keys)
    places = set()
    for number, (record, proof) in enumerate(zip(told, proofs)):  # noqa: B905 - compared above; older Pythons know no strict
        content = {name: value for name, value in record.items() if name != "hash"}
        if record.get("hash") != hashlib.sha256(canonical(content)).hexdigest() or record.get("txn") != evidence["txn"]:
            raise Bad(f"refusal {number}: it is not as it was sealed, or of another txn")
        places.add(included(record, proof, size, root))
    if len(places) != len(told):
        raise Bad("one of them is there twice")
    return f"{len(told)} refusals, sealed and in their log; that these are all is not proved"


def witnesses(evidence: Evidence, keys: Keys, wanted: list[str]) -> str:
    """Each witness that was named signed the checkpoint."""
    _, _, _, text = checkpoint(evidence.get("checkpoint"), "ledger", keys)
    seen = []
    for vkey in wanted:
        times = [at for line in evidence.get("cosignatures", []) if (at := cosignature(line, text, vkey)) is not None]
        if not times:
            raise Bad(f"the witness {vkey.partition('+')[0]} did not sign this checkpoint")
        seen.append(f"{vkey.partition('+')[0]} saw it at {max(times)} (Unix time)")
    return ", ".join(seen) or "none was named: nobody outside vouches for when this was so"


def timestamps(evidence: Evidence, tsa: str | None) -> str:
    """An authority that the verifier named stamped the checkpoint (RFC 3161). That takes openssl, which checks the signature."""
    told = evidence.get("timestamps") or []
    if not isinstance(told, list) or not all(isinstance(one, str) for one in told) or len(told) > 16:
        raise Bad("they are not of the form that time stamps have")
    if tsa is None:
        return f"{len(told)} of authorities that nobody named: not looked at" if told else "none"
    openssl = shutil.which("openssl")
    if openssl is None:
        raise Bad("not checked: install openssl, 1.1.1 or newer")
    digest, why = hashlib.sha256(evidence["checkpoint"].encode()).hexdigest(), "there is none"
    with tempfile.TemporaryDirectory() as folder:
        for one in told:
            answer = os.path.join(folder, "answer.tsr")
            with open(answer, "wb") as file:
                file.write(b64(one))
            shown = _openssl(openssl, "-reply", "-in", answer, "-text")
            said = re.search(r"^Time stamp: (\w{3}) +(\d+ [0-9:]{8})(?:\.\d+)? (\d{4}) GMT$", shown.stdout, re.M)
            if said is None:
                why = "it is no time stamp"
                continue
            at = datetime.strptime(" ".join(said.groups()), "%b %d %H:%M:%S %Y").replace(tzinfo=timezone.utc)  # noqa: UP017 - older Pythons know no datetime.UTC
            # As of then: an authority whose certificate has expired since said what it said.
            when = ("-attime", str(int(at.timestamp())))
            if _openssl(openssl, "-verify", "-digest", digest, "-in", answer, "-CAfile", tsa, *when).returncode == 0:
                return f"an authority that was named had the checkpoint at {at.isoformat()}"
            why = "it is signed by somebody else, or over something else"
    raise Bad(f"no authority that was named stamped this checkpoint: {why}")


def _openssl(program: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # noqa: S603 - words of this file, and names of files
        [program, "ts", *words],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={"PATH": os.environ.get("PATH", ""), "OPENSSL_CONF": os.devnull},
    )


def verify(
    data: bytes, jwks: bytes, wanted: list[str] | None = None, tsa: str | None = None
) -> list[tuple[str, bool, str]]:
    """Every check as ``(name, ok, where)``. Never raises for what a file contains."""
    try:
        keys = keys_of(parse(jwks))
        evidence = parse(data)
        lists = all(isinstance(evidence[name], list) for name in ("records", "grants", "refusals"))
        if evidence["v"] != 1 or not lists or not evidence["records"]:
            raise Bad("it is no evidence of version 1")
        if not all(isinstance(record, dict) for record in [*evidence["records"], *evidence["refusals"]]):
            raise Bad("a record is not an object")
    except (Bad, KeyError, TypeError, ValueError) as no:
        return [("form", False, str(no) or "it is no evidence")]
    checks: list[tuple[str, Callable[[], str]]] = [
        ("records", lambda: records(evidence)),
        ("grants", lambda: grants(evidence, keys)),
        ("approvals", lambda: approvals(evidence, keys)),
        ("proof", lambda: log(evidence, keys)),
        ("witnesses", lambda: witnesses(evidence, keys, wanted or [])),
        ("timestamps", lambda: timestamps(evidence, tsa)),
        ("complete", lambda: complete(evidence)),
        ("payloads", lambda: payloads(evidence)),
        ("personal", lambda: personal(evidence)),
        ("rules", lambda: rules(evidence)),
        ("refusals", lambda: refusals(evidence, keys)),
    ]
    found = [("form", True, "version 1")]
    for name, check in checks:
        try:
            found.append((name, True, check()))
        except Bad as no:
            found.append((name, False, str(no)))
        except (
            KeyError,
            TypeError,
            ValueError,
            AttributeError,
            IndexError,
            RecursionError,
            OSError,
            subprocess.SubprocessError,
        ) as odd:
            found.append((name, False, f"it is not of the form that evidence has ({type(odd).__name__})"))
    return found


def main() -> None:
    """The command. Exits 0 where everything holds, 1 where something does not."""
    parser = argparse.ArgumentParser(description="Check an evidence file of Remit offline.")
    parser.add_argument("evidence")
    parser.add_argument("--keys", required=True, help="the JWKS of the issuer, as you downloaded it")
    parser.add_argument(
        "--witness", action="append", default=[], metavar="VKEY", help="name+id+base64; may be repeated"
    )
    parser.add_argument(
        "--tsa", metavar="PEM", help="certificates of the authority whose time stamp is wanted; takes openssl"
    )
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with open(given.evidence, "rb") as file, open(given.keys, "rb") as jwks:
        found = verify(file.read(), jwks.read(), given.witness, given.tsa)
    well = all(ok for _, ok, _ in found)
    if given.json:
        checks = [{"check": name, "ok": ok, "where": where} for name, ok, where in found]
        print(json.dumps({"verified": well, "checks": checks}, ensure_ascii=False))
    else:
        for name, ok, where in found:
            print("ok  " if ok else "BAD ", f"{name}: {where}")
        print("VERIFIED" if well else "NOT VERIFIED")
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
