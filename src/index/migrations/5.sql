-- Lists are kept within a number of bytes, and each name within its share of it: what a page takes is found without
-- reading its body. `is_part` is set for pages that are less than the whole list: they go first. The lists so far may be
-- any number; they are learnt again.
DROP TABLE listings;
CREATE TABLE listings (
    id INTEGER PRIMARY KEY,
    repository TEXT NOT NULL,
    name TEXT NOT NULL,
    page TEXT NOT NULL,
    is_part INTEGER NOT NULL,
    checked_at INTEGER NOT NULL,
    bytes INTEGER NOT NULL,
    media_type TEXT,
    link TEXT,
    filters_applied TEXT,
    body BLOB NOT NULL,
    UNIQUE (repository, name, page)
);
CREATE INDEX listings_by_name ON listings (repository, name, is_part DESC, checked_at, bytes);

-- When a name was last noted to have a manifest: the oldest go first.
ALTER TABLE manifests ADD COLUMN noted_at INTEGER NOT NULL DEFAULT 0;
