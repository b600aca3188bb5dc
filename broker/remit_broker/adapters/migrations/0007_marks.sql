-- What tasks are found by, in the order in which they are listed: a page of any filter is read from one place, however many tasks
-- there are. Filled from the records that are there (index_marks.py), since their refusals may be in no stream any more.
CREATE TABLE mark (
    tenant TEXT NOT NULL,
    kind TEXT NOT NULL,
    value TEXT NOT NULL,
    opened_at TEXT NOT NULL,
    txn TEXT NOT NULL,
    PRIMARY KEY (tenant, kind, value, opened_at, txn)
) STRICT, WITHOUT ROWID;

DROP INDEX hop_by_resource;
DROP INDEX hop_by_callee;
DROP INDEX hop_by_caller;
DROP INDEX hop_by_code;
DROP INDEX txn_by_user;

-- The log of one tenant, in the order of the streams: the place in the stream is the end of every key.
CREATE INDEX record_by_tenant ON record (tenant);
CREATE INDEX refusal_by_tenant ON refusal (tenant);
