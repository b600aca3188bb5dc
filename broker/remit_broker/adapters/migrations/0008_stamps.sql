-- Time stamps (RFC 3161) of checkpoints: the answer of an authority, as it came.
CREATE TABLE stamp (
    tree TEXT NOT NULL,
    size INTEGER NOT NULL,
    url TEXT NOT NULL,
    answer BLOB NOT NULL,
    PRIMARY KEY (tree, size, url)
) STRICT;
