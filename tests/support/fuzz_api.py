"""The API fuzzed by its own description, in a process of its own: ``python -m tests.support.fuzz_api URL TOKEN EXAMPLES``.

Not inside of pytest, which rewrites the imports of its plugins: Python 3.11 cannot do that so deep.
"""

from __future__ import annotations

import sys
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import CHECKS, load_all_checks

WANTED = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")


def main(url: str, token: str, examples: int) -> int:
    """How many requests were made, on standard output. Raises what was found."""
    headers = {"Authorization": f"Bearer {token}"}
    described: dict[str, Any] = httpx.get(f"{url}/api/openapi.json", headers=headers, trust_env=False).json()
    schema = schemathesis.openapi.from_dict(described)
    schema.config.update(base_url=url)
    load_all_checks()
    checks = [check for check in CHECKS.get_all() if check.__name__ in WANTED]
    if len(checks) != len(WANTED):
        raise RuntimeError("a check is missing")
    made = 0
    for result in schema.get_all_operations():
        operation = result.ok()  # type: ignore[union-attr]

        @given(case=operation.as_strategy())
        @settings(
            max_examples=examples, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        def fuzz(case: Any) -> None:
            nonlocal made
            if isinstance(case.body, dict) and case.body.get("all"):
                return  # what stops everything stops this too
            made += 1
            case.call_and_validate(headers=headers, checks=checks)

        fuzz()
    print(made)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
