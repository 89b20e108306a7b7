-- All names are qualified with the schema: PgBouncer in transaction mode refuses a search_path at the start of a
-- connection, and other programs may use the database, too. Texts are ordered by their bytes, as in SQLite.

-- The version of this schema.
CREATE TABLE larder.version (version integer NOT NULL);
INSERT INTO larder.version VALUES (0);

-- The stores in which objects are: the directory of each Larder.
CREATE TABLE larder.holders (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text COLLATE "C" NOT NULL UNIQUE
);

-- A number for each digest that an object, an edge or visibility is about: rows of 8 bytes instead of 33, and these
-- stand in the indexes again. A row goes when nothing refers to it any more.
CREATE TABLE larder.digests (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    digest bytea NOT NULL UNIQUE
);

-- Objects in a store. `media_type` is set for manifests, as the upstream named it. `generation` tells apart what was
-- stored under one digest again and again, in stores that keep it so.
CREATE TABLE larder.objects (
    id bigint NOT NULL,
    holder integer NOT NULL,
    size bigint NOT NULL,
    media_type text COLLATE "C",
    generation text COLLATE "C",
    stored_at bigint NOT NULL,
    last_use bigint NOT NULL,
    PRIMARY KEY (id, holder)
);
-- The images that were used last are found without looking at the others.
CREATE INDEX objects_by_use ON larder.objects (holder, last_use, id) WHERE media_type IS NOT NULL;

-- Which manifest refers to which object.
CREATE TABLE larder.edges (
    parent bigint NOT NULL,
    child bigint NOT NULL,
    PRIMARY KEY (parent, child)
);
CREATE INDEX edges_by_child ON larder.edges (child, parent);

-- Who may see an object: a repository in a scope (0 where Larder's own credentials were shown it, 1 where those of
-- clients were, 2 where it is for everybody). The prefix of a repository is about as short as a number for it, which
-- would need a table of its own that somebody has to sweep.
CREATE TABLE larder.visibility (
    object bigint NOT NULL,
    scope smallint NOT NULL,
    repository text COLLATE "C" NOT NULL,
    PRIMARY KEY (object, repository, scope)
);

-- What a tag was when its upstream was last asked. The manifest itself may be missing.
CREATE TABLE larder.tags (
    repository text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    tag text COLLATE "C" NOT NULL,
    shelf text COLLATE "C" NOT NULL,
    digest bytea NOT NULL,
    media_type text COLLATE "C" NOT NULL,
    size bigint NOT NULL,
    checked_at bigint NOT NULL,
    PRIMARY KEY (repository, name, tag, shelf)
);
CREATE INDEX tags_by_digest ON larder.tags (digest);
CREATE INDEX tags_by_reference ON larder.tags ((repository || '/' || name || ':' || tag));
CREATE INDEX tags_by_age ON larder.tags (repository, checked_at);

-- Manifests asked for by digest, by the name they were asked for under.
CREATE TABLE larder.manifests (
    repository text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    digest bytea NOT NULL,
    noted_at bigint NOT NULL,
    PRIMARY KEY (repository, name, digest)
);
CREATE INDEX manifests_by_digest ON larder.manifests (digest);
CREATE INDEX manifests_by_reference ON larder.manifests ((repository || '/' || name
    || CASE length(digest) WHEN 32 THEN '@sha256:' ELSE '@sha512:' END || encode(digest, 'hex')));
CREATE INDEX manifests_by_age ON larder.manifests (repository, noted_at);

-- Lists of tags and referrers as last seen, for when the upstream is down. `page` is the SHA-256 of the page's path and
-- query, which may be longer than a row of an index can be (2704 bytes).
CREATE TABLE larder.listings (
    repository text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    page bytea NOT NULL,
    is_part boolean NOT NULL,
    checked_at bigint NOT NULL,
    bytes bigint NOT NULL,
    media_type text COLLATE "C",
    link text COLLATE "C",
    filters_applied text COLLATE "C",
    body bytea NOT NULL,
    PRIMARY KEY (repository, name, page)
);

-- Content of other URLs than registries'. `key` stands for the URL, `variant` for what the answer depends on in the
-- request; `head` is what has to be known to use it again.
CREATE TABLE larder.urls (
    key bytea NOT NULL,
    variant bytea NOT NULL,
    digest bytea NOT NULL,
    head bytea NOT NULL,
    stored_at bigint NOT NULL,
    PRIMARY KEY (key, variant)
);
CREATE INDEX urls_by_digest ON larder.urls (digest);
CREATE INDEX urls_by_age ON larder.urls (stored_at);

-- Images that are never evicted because somebody said so; `reference` is a tag or a digest.
CREATE TABLE larder.pins (
    repository text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    reference text COLLATE "C" NOT NULL,
    PRIMARY KEY (repository, name, reference)
);
