-- Content of other URLs than registries' (cache.patterns). `key` stands for the URL, `variant` for what the answer
-- depends on in the request (Vary); `head` is what has to be known to use it again.
CREATE TABLE urls (
    key BLOB NOT NULL,
    variant BLOB NOT NULL,
    digest BLOB NOT NULL,
    head BLOB NOT NULL,
    stored_at INTEGER NOT NULL,
    PRIMARY KEY (key, variant)
) WITHOUT ROWID;
CREATE INDEX urls_by_digest ON urls (digest);
CREATE INDEX urls_by_age ON urls (stored_at);
