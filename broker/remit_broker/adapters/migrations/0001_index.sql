-- A projection of the streams LEDGER and REFUSALS. Everything here can be made again from them, except `witness_*`:
-- what was seen of a stream once, against which the stream is checked at each start.

CREATE TABLE stream (
    name TEXT PRIMARY KEY,
    last_seq INTEGER NOT NULL,
    witness_seq INTEGER NOT NULL,
    witness_hash TEXT NOT NULL
) STRICT;

INSERT INTO stream VALUES ('LEDGER', 0, 0, ''), ('REFUSALS', 0, 0, '');

CREATE TABLE txn (
    tenant TEXT NOT NULL,
    txn TEXT NOT NULL,
    user TEXT NOT NULL,
    agent TEXT NOT NULL,
    root TEXT NOT NULL,
    continues TEXT,
    opened_at TEXT NOT NULL,
    last_at TEXT NOT NULL,
    closed_at TEXT,
    reason TEXT,
    exp INTEGER NOT NULL,
    hops INTEGER NOT NULL DEFAULT 0,
    open_hops INTEGER NOT NULL DEFAULT 0,
    limit_usd_micros INTEGER NOT NULL,
    limit_tokens INTEGER NOT NULL,
    limit_calls INTEGER NOT NULL,
    spent_usd_micros INTEGER NOT NULL DEFAULT 0,
    spent_tokens INTEGER NOT NULL DEFAULT 0,
    spent_calls INTEGER NOT NULL DEFAULT 0,
    last_seq INTEGER NOT NULL,
    last_hash TEXT NOT NULL,
    last_stream_seq INTEGER NOT NULL,
    PRIMARY KEY (tenant, txn)
) STRICT, WITHOUT ROWID;

CREATE INDEX txn_by_time ON txn (tenant, opened_at DESC, txn DESC);
CREATE INDEX txn_by_user ON txn (tenant, user, opened_at DESC, txn DESC);
CREATE INDEX txn_open ON txn (last_at) WHERE closed_at IS NULL;

-- Txns whose records do not follow one another, and why. Nothing after that is projected.
CREATE TABLE broken (
    tenant TEXT NOT NULL,
    txn TEXT NOT NULL,
    why TEXT NOT NULL,
    PRIMARY KEY (tenant, txn)
) STRICT, WITHOUT ROWID;

CREATE TABLE record (
    stream_seq INTEGER PRIMARY KEY,
    tenant TEXT NOT NULL,
    txn TEXT NOT NULL,
    seq INTEGER NOT NULL,
    at TEXT NOT NULL,
    kind TEXT NOT NULL,
    hop TEXT NOT NULL,
    body TEXT NOT NULL,
    grant_token TEXT,
    UNIQUE (tenant, txn, seq)
) STRICT;

CREATE TABLE hop (
    tenant TEXT NOT NULL,
    txn TEXT NOT NULL,
    hop TEXT NOT NULL,
    parent TEXT NOT NULL,
    caller TEXT NOT NULL,
    callee TEXT NOT NULL,
    resource TEXT NOT NULL,
    opened_at TEXT NOT NULL,
    deadline INTEGER NOT NULL,
    closed_at TEXT,
    outcome TEXT,
    code TEXT,
    PRIMARY KEY (tenant, txn, hop)
) STRICT, WITHOUT ROWID;

CREATE INDEX hop_by_id ON hop (tenant, hop);
CREATE INDEX hop_by_resource ON hop (tenant, resource, txn);
CREATE INDEX hop_by_callee ON hop (tenant, callee, txn);
CREATE INDEX hop_by_caller ON hop (tenant, caller, txn);
CREATE INDEX hop_by_code ON hop (tenant, code, txn) WHERE code IS NOT NULL;
CREATE INDEX hop_open ON hop (deadline) WHERE closed_at IS NULL;

CREATE TABLE refusal (
    stream_seq INTEGER PRIMARY KEY,
    tenant TEXT NOT NULL,
    txn TEXT,
    hop TEXT NOT NULL,
    user TEXT,
    caller TEXT NOT NULL,
    resource TEXT NOT NULL,
    code TEXT NOT NULL,
    at TEXT NOT NULL,
    count INTEGER NOT NULL,
    body TEXT NOT NULL
) STRICT;

CREATE INDEX refusal_by_txn ON refusal (tenant, txn, code);
CREATE INDEX refusal_by_id ON refusal (tenant, hop);
CREATE INDEX refusal_by_time ON refusal (tenant, at);
