-- A parked hop has not ended and is not late: it waits for its caller, as long as that one's own hop lasts.
ALTER TABLE hop ADD COLUMN parked_at TEXT;
DROP INDEX hop_open;
CREATE INDEX hop_open ON hop (deadline) WHERE closed_at IS NULL AND parked_at IS NULL;
