"""Stage 11. Schema, content and labels of every frame, before any of it is released to the caller."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from remit_broker.core.asking import secret_asked
from remit_broker.core.findings import within
from remit_broker.core.policy import Verdict
from remit_broker.hop.authorize import question
from remit_broker.hop.between import between
from remit_broker.hop.endorse import endorsed
from remit_broker.hop.heavy import weighed
from remit_broker.hop.hop import Denied, Hop, Inspected
from remit_broker.hop.label import at_the_end, heard_before_end, may_reach, with_content
from remit_broker.ports import Ports
from remit_schemas.canonical import canonical, canonical_document
from remit_schemas.envelope import Error, Event, InputRequired, Progress, Result
from remit_schemas.errors import Code, Refusal, refusal
from remit_schemas.records import Finding


async def inspect_result(hop: Hop, ports: Ports) -> Hop:
    """The final frame as it may be released. Refuses RESULT_INVALID or RESULT_DENIED; the effect has then happened."""
    final = hop.final
    if hop.request.detach and isinstance(final, Result):
        return hop.with_(result=detached(hop, ports, final))
    if isinstance(final, Result):
        _fits(hop, ports, final)
    # INVARIANT: no server has a person asked for a secret in a form (test_a_form_that_asks_for_a_secret_is_shown_to_nobody).
    if isinstance(final, InputRequired) and (field := secret_asked(final.request)):
        raise refusal(
            Code.RESULT_DENIED, f"{hop.resource} asks for a secret in a form, as {field!r}: nobody is asked", rule="elicit.secret",
            ask="have the server send people to a page of its own (mode url), or give it its credential by [backends]",
            effect="happened",
        )  # fmt: skip
    hop = await at_the_end(hop, ports)
    value = content_of(final)
    seen = await weighed(lambda: _look(hop, ports, value), hop.final_size, hop, ports)
    across = between(hop.heard, value, ports.detectors)
    seen = seen._replace(findings=(*seen.findings, *across))
    narrowed = endorsed(hop, final, seen.findings)
    if narrowed is not None:
        value = narrowed
        seen = _look(hop, ports, value)
    taken = hop.lowers if narrowed is not None else ()
    verdict = _permitted(hop, ports, seen, frozenset(hop.said).difference(taken))
    labels = with_content(hop, ports, seen.findings, verdict.redact).union(verdict.label).difference(taken)
    if _unreplaceable(across, verdict):
        no = refusal(
            Code.RESULT_DENIED, f"the answer of {hop.resource} ends what began in an earlier frame, where it cannot be replaced",
            rule="scan.frames", ask="have it said in one piece", effect="happened",
        )  # fmt: skip
        raise _withheld(no, hop, seen, verdict)
    try:
        may_reach(hop, labels)
    except Refusal as no:
        raise _withheld(no, hop, seen, verdict) from None
    shown: Any = value
    redacted: tuple[str, ...] = ()
    released = ""
    if verdict.redact and seen.findings:
        shown, redacted = await weighed(
            lambda: ports.detectors.redact(value, verdict.redact), hop.final_size, hop, ports
        )
    frame = _with_content(final, shown)
    if redacted:
        # INVARIANT: the record commits to what the caller was given too (test_what_policy_takes_out_of_an_answer_is_in_no_vault).
        data = await weighed(lambda: canonical_document(content_of(frame)), hop.final_size, hop, ports)
        released = ports.digester.digest(hop.ask.txn, data)
    return hop.with_(
        result=Inspected(
            frame=frame,
            digest=seen.digest,
            released=released,
            size=seen.size,
            decision=verdict.decision,
            findings=seen.findings,
            redacted=redacted,
            labels=tuple(sorted(labels)),
            endorsed=narrowed is not None,
        )
    )


def detached(hop: Hop, ports: Ports, final: Result) -> Inspected:
    """The broker's own answer. No content to judge: it is a grant, and the record's digest is of what may be told of it."""
    data = canonical({"txn": final.value["txn"], "exp": final.value["exp"]})
    return Inspected(frame=final, digest=ports.digester.digest(hop.ask.txn, data), size=len(data))


async def release(
    hop: Hop, ports: Ports, frame: Progress | Event, size: int, heard: tuple[str, ...] = ()
) -> Progress | Event:
    """An intermediate frame of ``size`` bytes as it may be released; where it has to wait for the end, word of that.

    ``heard`` is what the frames before it said. Refuses RESULT_DENIED.
    """
    hop = await at_the_end(hop, ports)
    raw = msgspec.to_builtins(frame)
    across = between(heard, spoken(frame), ports.detectors)
    findings = (*await weighed(lambda: ports.detectors.scan(raw), size, hop, ports), *across)
    verdict = _permitted(hop, ports, _Seen("", 0, findings), frozenset(hop.said))
    labels = with_content(hop, ports, findings, verdict.redact).union(verdict.label)
    if not heard_before_end(hop, labels):
        return Progress(message="withheld: its labels are not yet on its caller, or may not reach it")
    if _unreplaceable(across, verdict):
        return Progress(
            message="withheld: it ends something that began in an earlier frame, where it cannot be replaced"
        )
    shown = raw
    if verdict.redact and findings:
        shown, _ = await weighed(lambda: ports.detectors.redact(raw, verdict.redact), size, hop, ports)
    try:
        return msgspec.convert(shown, type(frame))
    except msgspec.ValidationError:
        # A placeholder may be longer than what it stands for (test_a_frame_that_redaction_makes_too_long_is_withheld).
        return Progress(message="withheld: without what policy removes it is no such frame")


def spoken(frame: Progress | Event) -> Any:
    """What a frame says, without what only frames it."""
    return frame.message if isinstance(frame, Progress) else frame.data


def _unreplaceable(across: tuple[Finding, ...], verdict: Verdict) -> bool:
    """Whether policy wants something replaced of which half is out already."""
    return any(within(one.kind, verdict.redact) for one in across)


class _Seen(NamedTuple):
    digest: str
    size: int
    findings: tuple[Finding, ...]


def _look(hop: Hop, ports: Ports, value: Any) -> _Seen:
    """What takes the longer the larger a value is. It touches nothing that another hop could be changing meanwhile."""
    data = canonical_result(value, hop.aim.callee)
    return _Seen(ports.digester.digest(hop.ask.txn, data), len(data), ports.detectors.scan(value))


def _permitted(hop: Hop, ports: Ports, seen: _Seen, labels: frozenset[str]) -> Verdict:
    verdict = ports.policy.decide(question(hop, ports, "release", seen.findings, tuple(sorted(labels))))
    if not verdict.allowed:
        no = refusal(
            Code.RESULT_DENIED, f"the answer of {hop.resource} is not released: {verdict.reason or 'no policy permits it'}",
            rule=", ".join(verdict.decision.rules) or "policy.default-deny", ask=verdict.ask or "ask an operator",
            effect="happened", cause=verdict.cause,
        )  # fmt: skip
        raise _withheld(no, hop, seen, verdict)
    return verdict


def _withheld(no: Refusal, hop: Hop, seen: _Seen, verdict: Verdict) -> Denied:
    """The refusal of an answer. Its record says what was found in it, and what decided.

    INVARIANT: an answer that is not released is recorded as one that is (test_the_record_of_a_withheld_answer_says_why).
    """
    kept = Inspected(
        frame=Error(error=no.body),
        digest=seen.digest,
        size=seen.size,
        decision=verdict.decision,
        findings=seen.findings,
    )
    return Denied(no, hop.with_(result=kept))


def _fits(hop: Hop, ports: Ports, result: Result) -> None:
    schema = hop.aim.output_schema
    if schema is None or result.failed:
        return
    value = result.value
    if hop.aim.kind == "mcp":
        value = value.get("structuredContent") if isinstance(value, dict) else None
    try:
        ports.schemas.result(hop.aim.definition, schema, value)
    except Refusal as bad:
        raise refusal(
            Code.RESULT_INVALID, f"the answer of {hop.resource} does not fit its own schema: {bad.body.message}",
            rule=bad.body.rule, ask="tell whoever runs it", effect="happened",
        ) from None  # fmt: skip


def canonical_result(value: Any, callee: str) -> bytes:
    """The bytes a result's digest is taken over. Refuses RESULT_INVALID."""
    try:
        return canonical_document(value)
    except ValueError as error:
        raise refusal(
            Code.RESULT_INVALID, f"the answer of {callee} has no canonical form", rule="result.canonical",
            ask="tell whoever runs it", effect="happened", cause=str(error),
        ) from None  # fmt: skip


Final = Result | Error | InputRequired


def content_of(final: Final | None) -> Any:
    """What a final frame says, without what only frames it."""
    if isinstance(final, Result):
        return final.value
    if isinstance(final, InputRequired):
        return final.request
    if isinstance(final, Error):
        return {"message": final.error.message, "rule": final.error.rule, "ask": final.error.ask}
    raise RuntimeError("no final frame")


def _with_content(final: Final | None, value: Any) -> Final:
    if isinstance(final, Result):
        return msgspec.structs.replace(final, value=value)
    if isinstance(final, InputRequired):
        return msgspec.structs.replace(final, request=value)
    if isinstance(final, Error):
        # Ids and links in an error are the broker's to give: what a callee wrote there is dropped.
        body = msgspec.structs.replace(final.error, **value, txn=None, hop=None, approval=None, approval_url=None)
        return msgspec.structs.replace(final, error=body)
    raise RuntimeError("no final frame")
