"""``/api/openapi.json`` is true: every route that is served and none else, and the API keeps to it whatever it is sent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.checks import CHECKS

from remit_broker.edges.http.openapi import Offered, Told, document
from tests.support.cli import new_folder, running

EXAMPLES = 12
"""For each operation: bounded, so that it is part of every run."""
WANTED = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")


class Served:
    """A broker process, the token of its operator, and what it says of itself."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self.headers = {"Authorization": f"Bearer {token}"}
        self.document: dict[str, Any] = self.get("/api/openapi.json").json()
        self.schema = schemathesis.openapi.from_dict(self.document)
        self.schema.config.update(base_url=url)
        self.operations = [result.ok() for result in self.schema.get_all_operations()]

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


def test_a_route_that_nobody_told_of_is_found() -> None:
    told = {"GET /api/x": Told("X.")}
    assert document([Offered("GET", "/api/x", "read")], told)["paths"]["/api/x"]["get"]["summary"] == "X."
    for offered in ([], [Offered("GET", "/api/x", "read"), Offered("GET", "/api/y", "read")]):
        with pytest.raises(ValueError, match="not both"):
            document(offered, told)


def test_no_operation_answers_without_a_token(served: Served) -> None:
    for path, verbs in served.document["paths"].items():
        for verb in verbs:
            url = served.url + path.replace("{txn}", "a" * 32).replace("{", "").replace("}", "")
            answer = httpx.request(verb.upper(), url, trust_env=False)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "UNAUTHENTICATED"), (verb, path)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_whatever_is_sent_is_answered_as_the_description_says(served: Served) -> None:
    checks = [check for check in CHECKS.get_all() if check.__name__ in WANTED]
    assert len(checks) == len(WANTED)
    assert len(served.operations) >= 30
    for operation in served.operations:

        @given(case=st.one_of(operation.as_strategy()))
        @settings(
            max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        def fuzz(case: Any) -> None:
            if (case.body or {}) and isinstance(case.body, dict) and case.body.get("all") is True:
                case.body["all"] = False  # what stops everything would stop this too
            case.call_and_validate(headers=served.headers, checks=checks)

        fuzz()
