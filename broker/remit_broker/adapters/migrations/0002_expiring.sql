-- The scan for txns past their root grant looks at those alone, not at every open one.
CREATE INDEX txn_expiring ON txn (exp) WHERE closed_at IS NULL;
