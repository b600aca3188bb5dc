-- What waits for a person is found among what waits, not among everything that was ever asked for.
CREATE INDEX approval_waiting ON approval (tenant, at DESC, id) WHERE verdict IS NULL AND used_by IS NULL;
