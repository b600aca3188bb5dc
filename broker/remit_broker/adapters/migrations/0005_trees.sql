-- The Merkle trees over both streams, in tiles, and the checkpoints that were signed of them. A tree begins with the first message
-- that was read: from here on the tables are made again from the streams, so that every message has its leaf.
ALTER TABLE stream ADD COLUMN tree_size INTEGER NOT NULL DEFAULT 0;
ALTER TABLE stream ADD COLUMN tree_first INTEGER NOT NULL DEFAULT 0;

CREATE TABLE tile (
    tree TEXT NOT NULL,
    level INTEGER NOT NULL,
    idx INTEGER NOT NULL,
    hashes BLOB NOT NULL,
    PRIMARY KEY (tree, level, idx)
) STRICT;

CREATE TABLE checkpoint (
    tree TEXT NOT NULL,
    size INTEGER NOT NULL,
    at TEXT NOT NULL,
    note TEXT NOT NULL,
    PRIMARY KEY (tree, size)
) STRICT;

ALTER TABLE refusal ADD COLUMN leaf INTEGER NOT NULL DEFAULT 0;

DELETE FROM record;
DELETE FROM hop;
DELETE FROM txn;
DELETE FROM broken;
DELETE FROM refusal;
DELETE FROM approval;
UPDATE stream SET last_seq = 0;

-- What witnesses added to a checkpoint.
CREATE TABLE cosignature (
    tree TEXT NOT NULL,
    size INTEGER NOT NULL,
    name TEXT NOT NULL,
    line TEXT NOT NULL,
    PRIMARY KEY (tree, size, name)
) STRICT;
