-- `shelf` tells tags of one repository apart that are not of the same source: empty for what Larder's own credentials
-- learn of its upstreams in order; else who learnt it, and of which upstream.
CREATE TABLE shelved_tags (
    repository TEXT NOT NULL,
    name TEXT NOT NULL,
    tag TEXT NOT NULL,
    digest BLOB NOT NULL,
    media_type TEXT NOT NULL,
    size INTEGER NOT NULL,
    checked_at INTEGER NOT NULL,
    shelf TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (repository, name, tag, shelf)
) WITHOUT ROWID;
INSERT INTO shelved_tags (repository, name, tag, digest, media_type, size, checked_at)
    SELECT repository, name, tag, digest, media_type, size, checked_at FROM tags;
-- What clients' own credentials brought in stood in the same rows. It is shown where its manifest is visible.
INSERT INTO shelved_tags (repository, name, tag, digest, media_type, size, checked_at, shelf)
    SELECT repository, name, tag, digest, media_type, size, checked_at, ' by clients' FROM tags
    WHERE EXISTS (SELECT 1 FROM visibility WHERE visibility.digest = tags.digest
        AND visibility.repository = tags.repository || ' by clients');
DROP TABLE tags;
ALTER TABLE shelved_tags RENAME TO tags;
CREATE INDEX tags_by_digest ON tags (digest);
