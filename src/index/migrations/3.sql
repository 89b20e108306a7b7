-- Images that are never evicted because somebody said so; `reference` is a tag or a digest.
CREATE TABLE pins (
    repository TEXT NOT NULL,
    name TEXT NOT NULL,
    reference TEXT NOT NULL,
    PRIMARY KEY (repository, name, reference)
) WITHOUT ROWID;

-- To forget all about an object that is gone.
CREATE INDEX visibility_by_digest ON visibility (digest);
CREATE INDEX tags_by_digest ON tags (digest);
CREATE INDEX manifests_by_digest ON manifests (digest);
