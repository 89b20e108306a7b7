-- The replicas that share the index, by the URL at which the others reach each. `epoch` is the number of the process,
-- `holder` its store;
-- a replica is alive until `alive_until`, by this server's clock.
CREATE TABLE larder.replicas (
    address text COLLATE "C" PRIMARY KEY,
    epoch bigint NOT NULL,
    holder integer NOT NULL,
    alive_until timestamptz NOT NULL
);

-- The page of a list as it was asked for, so that lists can be brought into another index. NULL: noted before.
ALTER TABLE larder.listings ADD COLUMN path text COLLATE "C";

-- The time of the server in microseconds since 1970, as of the begin of the transaction.
CREATE FUNCTION larder.microseconds() RETURNS bigint LANGUAGE sql STABLE
    AS 'SELECT (extract(epoch FROM now()) * 1000000)::bigint';

-- What the other Larders have to hear of: `kind` is 0 where rows were taken out, and `digests` with them, 1 where all was,
-- 2 where pins have changed; of a bucket, 3 where `digests` were uploaded (of these `sizes`), 4 where they were lost there,
-- 5 where they were evicted from there, and with that from all stores.
CREATE TABLE larder.changes (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    noted_at bigint NOT NULL DEFAULT larder.microseconds(),
    holder integer NOT NULL,
    kind smallint NOT NULL,
    digests bytea[] NOT NULL,
    -- The holder that is the bucket; those who have another one need not hear of it.
    bucket integer,
    sizes bigint[]
);
CREATE INDEX changes_by_age ON larder.changes (noted_at);

-- A bucket of [storage.s3] is a holder, too: one for all who share it, named by its place. The rows of a store say that a
-- file is there, those of a bucket by which upload the content is there, and a Larder serves what either has. A bucket
-- was once compared from the first key to the last with the one that is named here.
ALTER TABLE larder.holders ADD COLUMN compared_with text COLLATE "C";
-- Of all who share a bucket, one keeps it within its limits, until this time by this server's clock.
ALTER TABLE larder.holders ADD COLUMN kept_by integer;
ALTER TABLE larder.holders ADD COLUMN kept_until timestamptz;
-- The holder that is the bucket of a store.
ALTER TABLE larder.holders ADD COLUMN bucket integer;
-- When a Larder last used it: those that nobody has used for long are forgotten.
ALTER TABLE larder.holders ADD COLUMN seen_at timestamptz NOT NULL DEFAULT now();
