"""Time stamps of checkpoints by a real authority: `openssl ts -reply` behind HTTP on this machine."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from remit_broker import verifier
from remit_broker.adapters.index_proofs import signer
from remit_broker.adapters.outbound import Outbound
from remit_broker.adapters.sqlite_index import SqliteIndex
from remit_broker.adapters.world import SystemClock
from remit_broker.core.addresses import network
from remit_broker.core.stamps import ask
from remit_broker.timestamping import Timestamping
from tests.integration.test_index_tree import entries, story
from tests.integration.test_witnesses import LOG, Told
from tests.support.cli import remit
from tests.support.evidence import TRUSTED, closed_case

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not on this machine")

CONF = """
[ ca ]
basicConstraints = critical, CA:true
[ leaf ]
extendedKeyUsage = critical, timeStamping
[ tsa ]
default_tsa = here
[ here ]
dir = {folder}
serial = $dir/serial
signer_cert = $dir/tsa.pem
signer_key = $dir/tsa.key
certs = $dir/ca.pem
signer_digest = sha256
default_policy = 1.2.3.4.1
digests = sha256
accuracy = secs:1
"""


class Authority:
    """A certificate authority and a time-stamping authority under it, in a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "conf").write_text(CONF.format(folder=folder))
        (folder / "serial").write_text("01")
        for part in ("ca", "tsa"):
            self.openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{part}.key")
            self.openssl("req", "-new", "-key", f"{part}.key", "-subj", f"/CN={name} {part}", "-out", f"{part}.csr")
        days = ("-days", "2", "-extfile", "conf")
        self.openssl(
            "x509", "-req", "-in", "ca.csr", "-signkey", "ca.key", *days, "-extensions", "ca", "-out", "ca.pem"
        )
        by = ("-CA", "ca.pem", "-CAkey", "ca.key", "-set_serial", "7")
        self.openssl("x509", "-req", "-in", "tsa.csr", *by, *days, "-extensions", "leaf", "-out", "tsa.pem")
        self.asked: list[bytes] = []
        self.body: bytes | None = None

    def openssl(self, *words: str) -> None:
        subprocess.run(["openssl", *words], cwd=self.folder, check=True, capture_output=True)

    def reply(self, query: bytes) -> bytes:
        """What the authority answers."""
        (self.folder / "q.tsq").write_bytes(query)
        self.openssl("ts", "-reply", "-config", "conf", "-section", "here", "-queryfile", "q.tsq", "-out", "r.tsr")
        return (self.folder / "r.tsr").read_bytes()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tsa") / "a", "Clock")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tsa") / "b", "Other")


@pytest.fixture
def url(authority: Authority) -> Iterator[str]:
    """The authority over HTTP; ``authority.body`` is what it answers whatever it is asked, where that is set."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = self.rfile.read(int(self.headers["content-length"]))
            assert self.headers["content-type"] == "application/timestamp-query"
            authority.asked.append(query)
            body = authority.reply(query) if authority.body is None else authority.body
            self.send_response(200)
            self.send_header("Content-Type", "application/timestamp-reply")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    authority.body, authority.asked = None, []
    yield f"http://127.0.0.1:{server.server_port}/tsr"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
async def index(tmp_path: Path) -> AsyncIterator[SqliteIndex]:
    index = await SqliteIndex.open(tmp_path / "index" / "index.db")
    index.signed_with(signer("https://remit.example", LOG))
    yield index
    await index.close()


def stamping(index: SqliteIndex, url: str, told: Told, every: float = 0.0) -> Timestamping:
    out = Outbound([network("127.0.0.1/32")], named="log.witness_allow")
    return Timestamping(url, every, out, index, SystemClock(), told)  # type: ignore[arg-type]


async def test_a_checkpoint_is_stamped_once_and_kept(index: SqliteIndex, url: str, authority: Authority) -> None:
    told = Told()
    stamps = stamping(index, url, told)
    await stamps.once()
    assert authority.asked == [], "there is no checkpoint"
    await index.add(entries(story()))
    await stamps.once()
    await stamps.once()
    assert (told.faults, len(authority.asked), stamps.stamped) == ([], 1, 1)
    await index.add(entries(story(), story("b" * 32)))
    await stamping(index, url, told, every=3600).once()
    late = stamping(index, url, told, every=3600)
    await late.once()
    await index.add(entries(story(), story("b" * 32), story("c" * 32)))
    await late.once()
    assert len(authority.asked) == 3, "not more often than it should be"
    sealed = await index.proofs.sealed("LEDGER")
    assert sealed is not None and sealed.size == 8, "the one that was stamped is shown rather than a newer one"
    assert len(sealed.stamps) == 1


@pytest.mark.parametrize("what", ["nothing", "another"])
async def test_a_stamp_over_something_else_is_not_kept(
    index: SqliteIndex, url: str, authority: Authority, what: str
) -> None:
    told = Told()
    await index.add(entries(story()))
    if what == "another":
        await stamping(index, url, told).once()
        authority.body = authority.reply(authority.asked[0])
        await index.add(entries(story(), story("b" * 32)))
    else:
        authority.body = b"nothing"
    stamps = stamping(index, url, told)
    await stamps.once()
    assert (stamps.stamped, stamps.failed, len(told.faults)) == (0, 1, 1)
    assert "did not stamp" in told.faults[0]


def with_stamp(authority: Authority, note: str | None = None) -> dict[str, Any]:
    """Evidence with a stamp of ``authority`` over its checkpoint, or over ``note``."""
    evidence = closed_case().evidence()
    answer = authority.reply(ask(evidence["checkpoint"] if note is None else note, 7))
    return {**evidence, "timestamps": [base64.b64encode(answer).decode()]}


def found(evidence: dict[str, Any], pem: Path | None) -> tuple[bool, str]:
    """What `remit-verify` says of the time stamps; everything else about the evidence is well."""
    data, jwks = json.dumps(evidence).encode(), json.dumps(TRUSTED.to_jwks()).encode()
    checks = {name: (ok, where) for name, ok, where in verifier.verify(data, jwks, [], str(pem) if pem else None)}
    assert [name for name, (ok, _) in checks.items() if not ok] in ([], ["timestamps"])
    return checks["timestamps"]


def test_a_stamp_verifies_with_the_certificate_that_the_verifier_brings(authority: Authority, tmp_path: Path) -> None:
    evidence, pem = with_stamp(authority), authority.folder / "ca.pem"
    ok, where = found(evidence, pem)
    assert ok and where.startswith("an authority that was named had the checkpoint at 20")
    assert found(evidence, None) == (True, "1 of authorities that nobody named: not looked at")
    assert found(closed_case().evidence(), None) == (True, "none")
    (tmp_path / "e.json").write_text(json.dumps(evidence))
    (tmp_path / "jwks.json").write_text(json.dumps(TRUSTED.to_jwks()))
    verify = ("evidence", "verify", str(tmp_path / "e.json"), "--keys", str(tmp_path / "jwks.json"), "--json", "--tsa")
    done = remit(*verify, str(pem))
    assert (done.code, done.json()["verified"], done.json()["checks"][-1]["where"]) == (0, True, where)
    assert remit(*verify, str(tmp_path / "jwks.json")).code == 1
    assert remit(*verify, str(tmp_path / "none.pem")).code == 2


def test_a_stamp_of_another_authority_or_checkpoint_is_none(authority: Authority, other: Authority) -> None:
    wrong = [
        (with_stamp(authority), other),
        (with_stamp(authority, "another checkpoint"), authority),
        (closed_case().evidence(), authority),
        ({**closed_case().evidence(), "timestamps": ["AAAA"]}, authority),
        ({**closed_case().evidence(), "timestamps": ["!"]}, authority),
        ({**closed_case().evidence(), "timestamps": "AAAA"}, authority),
    ]
    for evidence, trusted in wrong:
        assert not found(evidence, trusted.folder / "ca.pem")[0]


def test_without_openssl_it_is_said_that_nobody_looked(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    evidence = with_stamp(authority)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    ok, where = found(evidence, authority.folder / "ca.pem")
    assert not ok and "not checked: install openssl" in where
