"""What the bench makes of what it measured."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import pytest

from remit_broker.bench.measure import Samples, round_of
from remit_broker.bench.site import NotDone, Patient
from remit_broker.bench.usage import children, processor_seconds, resident_bytes
from remit_broker.cli.bench import mcp_targets, targets
from remit_schemas.envelope import Error, Result, encode
from remit_schemas.errors import Code, Effect, refusal

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="read from /proc")


def test_quantiles_are_of_the_sorted_samples() -> None:
    samples = Samples([n * 1000 for n in range(100, 0, -1)], 2.0)
    assert (samples.quantile(0.5), samples.quantile(0.99), samples.rate) == (51.0, 100.0, 50.0)


@LINUX
def test_processor_time_grows_while_a_process_works() -> None:
    before = processor_seconds([os.getpid()])
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass
    after = processor_seconds([os.getpid()])
    assert before is not None and after is not None
    assert 0.04 < after - before < 5


@LINUX
def test_what_a_process_started_is_found_by_its_name() -> None:
    child = subprocess.Popen(["/bin/sleep", "60"])
    try:
        assert child.pid in children(os.getpid(), "sleep")
        assert children(os.getpid(), "no-such-name") == []
        assert (resident_bytes([os.getpid()]) or 0) > 1_000_000
    finally:
        child.kill()
        child.wait()


def test_a_process_that_is_gone_has_no_figures() -> None:
    assert processor_seconds([2**30]) is None
    assert resident_bytes([2**30]) is None


def figures(**changed: Any) -> dict[str, Any]:
    row = {"p50_us_1": 100.0, "p50_us_32": 100.0, "p99_us_32": 300.0, "ops_256": 1000.0, "cpu_us_256": 50.0}
    return {**row, **changed}


def test_the_aims_are_judged_by_ratios_of_one_run() -> None:
    found = {
        "direct": figures(cpu_us_256=None),
        "relay": figures(),
        "governed": figures(p50_us_1=350.0, ops_256=500.0, cpu_us_256=200.0),
        "governed_two": figures(ops_256=700.0),
        "long_txn": {
            "records": 2001, "p50_us_first": 1.0, "p50_us_last": 2.0, "cpu_us_first": None, "cpu_us_last": 3.0
        },
        "memory": {
            "broker_bytes_per_connection": 1024, "nats_server_bytes_per_connection": None,
            "broker_bytes_per_open_txn": 2048, "nats_server_bytes_per_open_txn": 512,
        },
    }  # fmt: skip
    said = targets(found)
    assert said[:4] == [
        "p50 at 1 in flight: 3.50 x direct",
        "rate at 256: 0.50 x a bare relay",
        "p99 at 32 in flight: 3.00 x its p50",
        "two broker processes: 1.40 x the rate of one",
    ]
    assert "2,001 records" in said[4] and "? and 3 us" in said[4]
    assert "broker 1.0 KiB, NATS server ?" in said[5]
    assert said[6].endswith("5,000/s beside 20,000/s of a bare relay (0.25 x)")


def refusal_of(code: Code, effect: Effect) -> bytes:
    body = refusal(code, "no", rule="some.rule", ask="again", effect=effect, retry_after=0.01).body
    return encode(Error(error=body))


async def test_a_call_that_may_be_made_again_is_and_is_counted() -> None:
    answers = [refusal_of(Code.RATE_LIMITED, "none"), refusal_of(Code.RATE_LIMITED, "none")]

    async def call(_: int) -> None:
        if answers:
            raise NotDone(answers.pop())

    patient = Patient(call)
    samples = await round_of(patient, 3, 1)
    assert patient.refused == 2
    assert len(samples.nanos) == 3 and samples.quantile(1) >= 20_000


@pytest.mark.parametrize(
    "answer", [refusal_of(Code.RATE_LIMITED, "unknown"), refusal_of(Code.OUT_OF_SCOPE, "none"), encode(Result(value=1))]
)
async def test_what_may_not_be_made_again_ends_the_measurement(answer: bytes) -> None:
    async def call(_: int) -> None:
        raise NotDone(answer)

    with pytest.raises(NotDone):
        await Patient(call)(0)


def test_the_aims_for_mcp_are_ratios_of_one_run() -> None:
    found = {
        "direct_http": {"p50_us_1": 100.0, "ops_16": 50.0}, "remit_http": {"p50_us_1": 250.0, "ops_16": 30.0},
        "direct_stdio": {"p50_us_1": 10.0}, "remit_stdio": {"p50_us_1": 80.0},
    }  # fmt: skip
    assert mcp_targets(found) == [
        "p50 at 1 in flight over http: 2.50 x direct", "p50 at 1 in flight over stdio: 8.00 x direct",
    ]  # fmt: skip
    found["peer_http"] = {"p50_us_1": 1000.0, "ops_16": 3.0}
    assert mcp_targets(found)[-1] == "the peer: p50 10.00 x direct; Remit makes 10.0 x its calls"
