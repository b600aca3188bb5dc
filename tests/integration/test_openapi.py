"""``/api/openapi.json`` is true: every route that is served and none else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from remit_broker.edges.http.openapi import Offered, untold
from remit_broker.edges.http.told import TOLD
from tests.support.cli import new_folder, running

ROOT = Path(__file__).parents[2]


class Served:
    """A broker process, the token of its operator, and what it says of itself."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self.headers = {"Authorization": f"Bearer {token}"}
        self.document: dict[str, Any] = self.get("/api/openapi.json").json()

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, headers=self.headers, trust_env=False, **options)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = new_folder(tmp_path_factory.mktemp("api") / "broker")
    with running(folder) as broker:
        token = (Path(folder) / "data" / "keys" / "local.token").read_text(encoding="utf-8").strip()
        yield Served(broker.ready["http"], token)


def test_every_route_of_the_contract_is_there_with_who_may_and_how_it_is_refused(served: Served) -> None:
    assert served.document["openapi"] == "3.1.0"
    paths = served.document["paths"]
    for name in (
        "chains", "chains/{txn}", "chains/{txn}/evidence", "records", "approvals", "servers", "agents", "budgets",
        "revocations", "checkpoint",
    ):  # fmt: skip
        told = paths[f"/api/{name}"]["get"]
        assert told["summary"] and "`read`" in told["description"]
        assert {"200", "400", "401", "403", "404", "503"} <= set(told["responses"])
    assert served.document["security"] == [{"bearer": []}]
    assert paths["/api/grants"]["post"]["requestBody"]["required"] is True


def test_the_description_is_for_those_who_may_read(served: Served) -> None:
    assert httpx.get(f"{served.url}/api/openapi.json", trust_env=False).status_code == 401


def test_every_route_is_told_of_and_nothing_else(served: Served) -> None:
    offered = [Offered(verb.upper(), path, None) for path, verbs in served.document["paths"].items() for verb in verbs]
    assert untold(offered, TOLD) == set()
    assert untold(offered[1:], TOLD) and untold([*offered, Offered("GET", "/api/none", None)], TOLD)


def test_no_operation_answers_without_a_token(served: Served) -> None:
    for path, verbs in served.document["paths"].items():
        for verb in verbs:
            url = served.url + path.replace("{txn}", "a" * 32).replace("{", "").replace("}", "")
            answer = httpx.request(verb.upper(), url, trust_env=False)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "UNAUTHENTICATED"), (verb, path)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_whatever_is_sent_is_answered_as_the_description_says(served: Served) -> None:
    token = served.headers["Authorization"].removeprefix("Bearer ")
    words = [sys.executable, "-m", "tests.support.fuzz_api", served.url, token, "5"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert int(done.stdout) > 100, "so many requests were made"
