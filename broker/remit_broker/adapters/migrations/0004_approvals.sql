-- Requests for approvals and what people said to them. What has become of one can be told from its row and the time.
CREATE TABLE approval (
    tenant TEXT NOT NULL,
    txn TEXT NOT NULL,
    id TEXT NOT NULL,
    seq INTEGER NOT NULL,
    user TEXT NOT NULL,
    resource TEXT NOT NULL,
    at TEXT NOT NULL,
    exp INTEGER NOT NULL,
    verdict TEXT,
    use_until INTEGER,
    used_by TEXT,
    told INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant, txn, id)
) STRICT, WITHOUT ROWID;

CREATE INDEX approval_by_id ON approval (tenant, id);
CREATE INDEX approval_by_time ON approval (tenant, at DESC, id);
-- Whom the webhook has still to be told of.
CREATE INDEX approval_untold ON approval (exp) WHERE told = 0 AND verdict IS NULL;
