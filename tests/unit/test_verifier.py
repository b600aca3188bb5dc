"""The verifier that is handed out: it stands alone, and whatever the broker's own check finds in a proof it finds too."""

from __future__ import annotations

import ast
import copy
import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remit_broker import verifier
from remit_broker.core import notes
from remit_broker.core.evidence import verify_evidence
from remit_broker.core.notes import Witness
from remit_schemas.canonical import canonical
from remit_schemas.keys import KeySet, SigningKey
from tests.support.evidence import KEY, OTHER, SEAL, TRUSTED, Case, closed_case, long_case, reproved, resealed
from tests.support.story import ROOT

FILE = Path(verifier.__file__)
JWKS = json.dumps(TRUSTED.to_jwks()).encode()
KEYS = verifier.keys_of(json.loads(JWKS))
Evidence = dict[str, Any]
GOOD: Evidence = closed_case().evidence()
FORGER = SigningKey.from_seed(b"\x04" * 32, "checkpoint")
VECTORS = Path(__file__).parents[1] / "vectors" / "wycheproof"


def approved() -> Case:
    case = Case()
    case.approve("0123456789abcdef", ROOT, "mcp/git/git_log")
    return case


def failed(evidence: Evidence, jwks: bytes = JWKS, witnesses: list[str] | None = None) -> dict[str, str]:
    found = verifier.verify(json.dumps(evidence).encode(), jwks, witnesses)
    return {name: where for name, ok, where in found if not ok}


@pytest.mark.parametrize(
    "case", [closed_case(), long_case(), Case(), approved()], ids=["closed", "long", "open", "approved"]
)
def test_what_the_broker_exports_verifies(case: Case) -> None:
    assert failed(case.evidence()) == {}


def test_it_imports_nothing_but_the_standard_library() -> None:
    named = [
        name
        for node in ast.walk(ast.parse(FILE.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or "."])
    ]
    assert {name.split(".")[0] for name in named} <= set(sys.stdlib_module_names)


def test_one_file_and_a_bare_interpreter_are_enough(tmp_path: Path) -> None:
    (tmp_path / "remit_verify.py").write_bytes(FILE.read_bytes())
    (tmp_path / "e.json").write_text(json.dumps(GOOD))
    (tmp_path / "jwks.json").write_bytes(JWKS)
    command = [sys.executable, "-I", "-S", "remit_verify.py", "e.json", "--keys", "jwks.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.endswith("VERIFIED\n") and "NOT" not in done.stdout
    (tmp_path / "e.json").write_text(json.dumps({**GOOD, "complete": False}))
    done = subprocess.run([*command, "--json"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and json.loads(done.stdout)["verified"] is False


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict | list) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return [leaf for key, below in items for leaf in leaves(below, (*path, key))]
    return [path]


@pytest.mark.parametrize("part", ["records", "refusals"])
def test_any_changed_value_is_found(part: str) -> None:
    for path in leaves(GOOD[part]):
        evidence = copy.deepcopy(GOOD)
        where = evidence[part]
        for key in path[:-1]:
            where = where[key]
        where[path[-1]] = "x" if where[path[-1]] != "x" else "y"
        with pytest.raises(verifier.Bad, match=f"{part[:-1]} {path[0]}: "):
            verifier.records(evidence) if part == "records" else verifier.refusals(evidence, KEYS)


def sealed_anew(index: int, evidence: Evidence) -> None:
    """By somebody who has no key."""
    evidence["records"][index]["by"] = "x"
    resealed(evidence["records"], index)


def proved_anew(evidence: Evidence) -> None:
    """All of it sealed and proved anew, by somebody with another key who also says so in the file."""
    sealed_anew(6, evidence)
    reproved(evidence, FORGER)
    evidence["keys"] = KeySet([KEY.public, FORGER.public]).to_jwks()


CHANGES: dict[str, Callable[[Evidence], Any]] = {
    "a record is dropped": lambda it: it["records"].pop(3),
    "the end is cut off": lambda it: (it["records"].pop(), it.update(complete=False)),
    "two change places": lambda it: it["records"].insert(2, it["records"].pop(3)),
    "one stands there twice": lambda it: it["records"].insert(2, it["records"][2]),
    "a record is sealed anew": functools.partial(sealed_anew, 6),
    "one that was granted is sealed anew": functools.partial(sealed_anew, 1),
    "all is sealed and proved anew by another key": proved_anew,
    "a grant is missing": lambda it: it["grants"].pop(),
    "a grant stands there twice": lambda it: it["grants"].append(it["grants"][0]),
    "grants are those of another chain": lambda it: it.update(grants=long_case().evidence()["grants"]),
    "the proof is that of another chain": lambda it: it.update(proof=long_case().evidence()["proof"]),
    "the checkpoint is that of the refusals": lambda it: it.update(checkpoint=it["refusal_checkpoint"]),
    "there is no checkpoint": lambda it: it.pop("checkpoint"),
    "a refusal is missing": lambda it: it["refusals"].pop(),
    "a refusal was made up": lambda it: it["refusals"][0].update(message="x"),
    "the task is another": lambda it: it.update(txn="b" * 32),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_each_attack_is_found_by_both(what: str) -> None:
    evidence = copy.deepcopy(GOOD)
    CHANGES[what](evidence)
    assert failed(evidence)
    assert not verify_evidence(evidence, TRUSTED).verified


def test_grants_that_are_wider_are_found() -> None:
    case = Case()
    case.open("00000000000000aa", ROOT, "agent/researcher/brief")
    import msgspec

    from remit_schemas.budget import Budget
    from remit_schemas.grant import mint

    jti = case.story.records[-1]["jti"]
    for changes in (
        {"budget": Budget(9_999_999, 1, 1)},
        {"exp": 2_100_000_000},
        {"depth": 2},
        {"par": "A" * 43},
        {"sub": "bob"},
    ):
        claims = msgspec.structs.replace(case.claims(1, ROOT), **changes)
        try:
            case.tokens[jti] = mint(claims, KEY)
        except Exception:
            continue
        assert "grants" in failed(case.evidence())


def test_keys_are_those_that_were_given() -> None:
    jwks = json.dumps(KeySet([OTHER.public, SEAL.public]).to_jwks()).encode()
    assert "grants" in failed(GOOD, jwks)
    as_grants = json.dumps({"keys": [{**SEAL.public.to_jwk(), "remit_use": "grant"}, KEY.public.to_jwk()]}).encode()
    assert "proof" in failed(GOOD, as_grants)
    assert failed(GOOD, b"{}") and failed(GOOD, b"x")


def test_a_named_witness_must_have_signed() -> None:
    outside = SigningKey.from_seed(b"\x05" * 32, "witness")
    witness = Witness("w.example", outside.public.raw)
    assert "witnesses" in failed(GOOD, witnesses=[witness.vkey])
    seen = notes.cosign(notes.parse(GOOD["checkpoint"]).checkpoint, "w.example", outside, 7)
    assert failed({**GOOD, "cosignatures": [seen.line]}, witnesses=[witness.vkey]) == {}
    other = Witness("w.example", OTHER.public.raw)
    assert "witnesses" in failed({**GOOD, "cosignatures": [seen.line]}, witnesses=[other.vkey])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"v":1}',
        b'{"v":1,"v":1}',
        b"\xff",
        b'{"v":1,"records":[7],"grants":[],"refusals":[]}',
        b"[" * 9999,
    ],
)
def test_what_is_no_evidence_is_none(data: bytes) -> None:
    assert not all(ok for _, ok, _ in verifier.verify(data, JWKS))


@pytest.mark.parametrize(
    "text", ['"seq": 0.0', '"seq": 0, "seq": 0', '"seq": 1e0', '"seq": 99999999999999999999', '"seq": NaN']
)
def test_no_trick_of_writing_numbers_or_names_gets_through(text: str) -> None:
    data = json.dumps(GOOD).replace('"seq": 0', text, 1).encode()
    assert not all(ok for _, ok, _ in verifier.verify(data, JWKS))


@pytest.mark.parametrize(
    "value",
    [
        {"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\U0001f600": 5, "\x80": 6, "\xf6": 7},
        ['\x00\x1f\x7f\\"/\u2028', -1, None, True, {}, []],
    ],
)
def test_it_hashes_json_as_the_broker_does(value: Any) -> None:
    assert verifier.canonical(value) == canonical(value)


def test_its_ed25519_agrees_with_wycheproof() -> None:
    """Also where the vectors leave it open, it refuses what the strict libraries refuse."""
    groups = json.loads((VECTORS / "ed25519.json").read_text())["testGroups"]
    for key, case in [(group["pk"], case) for group in groups for case in group["tests"]]:
        found = verifier.ed25519(bytes.fromhex(key), bytes.fromhex(case["msg"]), bytes.fromhex(case["sig"]))
        assert found is (case["result"] == "valid"), case["tcId"]
