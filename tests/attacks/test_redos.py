"""Regular expressions that never end: from a callee's schema, or in text made for those of the broker. Others are served meanwhile."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from remit_broker.testing import running_broker
from remit_schemas.envelope import Error, Result
from remit_schemas.errors import Code
from tests.support.raw import Taken, arena_on, skill

# Each takes longer than anybody lives in an engine that tries everything.
ENDLESS = [
    r"^(a+)+$", r"^(a|a)*$", r"^(a|aa)+$", r"^(a+)+(?=b)$", r"^(?!x)(a|aa|a?)+\1$", r"^(([a-z])+.)+[A-Z]([a-z])+$",
]  # fmt: skip
PATIENCE = 100.0
"""Seconds: what does not end takes longer, and what is merely slow on a busy machine does not."""
LONG = 100_000
"""Characters, more than enough for any of them."""
MUCH = "usd=10000,tokens=1000000000,calls=100000"
TEXTS = {
    "a local part without an end": "a." * (LONG // 2) + "@",
    "labels of a host": "x@" + "a-" * (LONG // 2),
    "groups of digits": "1234 " * (LONG // 5),
    "a key that does not begin": "-----BEGIN " * (LONG // 11),
    "words before an order": "ignore " * (LONG // 7),
    "assignments": "password=" * (LONG // 9),
    "base64 in base64": "QUFB" * (LONG // 4) + "=",
    "percent signs": "%25" * (LONG // 3),
    "escapes": "\\u0061" * (LONG // 6),
    "hidden characters": "a\u200b" * (LONG // 2),
}


async def _honest(taken: Taken) -> None:
    await taken.done("done")


async def test_no_pattern_and_no_text_keeps_the_broker_from_anybody(tmp_path: Path) -> None:
    async with running_broker(tmp_path) as lab, arena_on(lab) as arena:
        mallory, alice = await arena.agent("mallory"), await arena.agent("alice")
        evil, good = await arena.agent("evil"), await arena.agent("good")
        schemas = {
            f"p{number}": {"type": "object", "properties": {"text": {"type": "string", "pattern": pattern}}}
            for number, pattern in enumerate(ENDLESS)
        }
        for name in (*schemas, "answer"):
            evil.handlers[name] = _honest
        good.handlers["work"] = _honest
        answer = {"type": "string", "pattern": ENDLESS[0]}
        evil.handlers["answer"] = lambda taken: taken.done("a" * LONG + "!")
        await evil.serve(
            *(skill(name, inputSchema=schema) for name, schema in schemas.items()), skill("answer", outputSchema=answer)
        )
        await good.serve(skill("work"))
        theirs = await lab.grant("mallory", "agent/**", budget=MUCH)
        hers = await lab.grant("alice", "agent/**", budget=MUCH)

        async def honest() -> int:
            """Calls of somebody else, one after the other, until all the others have ended."""
            made = 0
            while not attack.done():
                assert isinstance((await alice.call("agent/good/work", hers.txn, hers.grant))[-1], Result)
                made += 1
                await asyncio.sleep(0.05)
            return made

        async def hostile() -> None:
            for name in schemas:
                args = {"text": "a" * LONG + "!"}
                final = (await mallory.call(f"agent/evil/{name}", theirs.txn, theirs.grant, args))[-1]
                assert isinstance(final, Error) and final.error.code == Code.ARGUMENTS_INVALID, (name, final)
            final = (await mallory.call("agent/evil/answer", theirs.txn, theirs.grant))[-1]
            assert isinstance(final, Error) and final.error.code == Code.RESULT_INVALID, final
            for name, text in TEXTS.items():
                # Permitted or not is another question: it is answered.
                request = json.dumps({"v": 1, "grant": theirs.grant, "args": {"text": text}}).encode()
                assert await mallory.ask(mallory.subject("agent/good/work", theirs.txn), request, seconds=PATIENCE), (
                    name
                )

        attack = asyncio.ensure_future(hostile())
        others = asyncio.ensure_future(honest())
        try:
            async with asyncio.timeout(150):
                await attack
                assert await others > 3, "somebody else was served meanwhile"
        finally:
            attack.cancel()
            others.cancel()


@pytest.mark.parametrize("glob", ["*a" * 30 + "b", "**/" * 30 + "b"])
async def test_no_scope_of_stars_keeps_the_broker_from_anybody(tmp_path: Path, glob: str) -> None:
    async with running_broker(tmp_path) as lab, arena_on(lab) as arena:
        mallory, good = await arena.agent("mallory"), await arena.agent("good")
        good.handlers["work"] = _honest
        await good.serve(skill("work"))
        root = await lab.grant("mallory", "agent/**")
        want = {"scopes": [{"type": "remit", "resource": f"agent/{glob}"}]}
        final = (await mallory.call("agent/good/work", root.txn, root.grant, want=want))[-1]
        assert isinstance(final, Error), "no such pattern exists here"
        assert isinstance((await mallory.call("agent/good/work", root.txn, root.grant))[-1], Result)
