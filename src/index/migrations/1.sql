-- Objects in the store. `media_type` is set for manifests, as the upstream named it.
CREATE TABLE objects (
    digest BLOB PRIMARY KEY,
    size INTEGER NOT NULL,
    media_type TEXT,
    stored_at INTEGER NOT NULL
) WITHOUT ROWID;

-- What a tag was when its upstream was last asked. The manifest itself may be missing.
CREATE TABLE tags (
    repository TEXT NOT NULL,
    name TEXT NOT NULL,
    tag TEXT NOT NULL,
    digest BLOB NOT NULL,
    media_type TEXT NOT NULL,
    size INTEGER NOT NULL,
    checked_at INTEGER NOT NULL,
    PRIMARY KEY (repository, name, tag)
) WITHOUT ROWID;

-- Manifests asked for by digest, by the name they were asked for under.
CREATE TABLE manifests (
    repository TEXT NOT NULL,
    name TEXT NOT NULL,
    digest BLOB NOT NULL,
    PRIMARY KEY (repository, name, digest)
) WITHOUT ROWID;

-- Objects that a repository's own upstream is known to have; others are not shown there.
CREATE TABLE visibility (
    repository TEXT NOT NULL,
    digest BLOB NOT NULL,
    PRIMARY KEY (repository, digest)
) WITHOUT ROWID;

-- Which manifest refers to which object.
CREATE TABLE edges (
    parent BLOB NOT NULL,
    child BLOB NOT NULL,
    PRIMARY KEY (parent, child)
) WITHOUT ROWID;
CREATE INDEX edges_by_child ON edges (child);

-- Lists of tags and referrers as last seen, for when the upstream is down.
CREATE TABLE listings (
    repository TEXT NOT NULL,
    page TEXT NOT NULL,
    body BLOB NOT NULL,
    media_type TEXT,
    link TEXT,
    filters_applied TEXT,
    checked_at INTEGER NOT NULL,
    PRIMARY KEY (repository, page)
) WITHOUT ROWID;
CREATE INDEX listings_by_age ON listings (checked_at);
