-- The replicas that share the index, by the URL at which the others reach each. `epoch` is the number of the process,
-- `holder` its store;
-- a replica is alive until `alive_until`, by this server's clock.
CREATE TABLE larder.replicas (
    address text COLLATE "C" PRIMARY KEY,
    epoch bigint NOT NULL,
    holder integer NOT NULL,
    alive_until timestamptz NOT NULL
);

-- The time of the server in microseconds since 1970, as of the begin of the transaction.
CREATE FUNCTION larder.microseconds() RETURNS bigint LANGUAGE sql STABLE
    AS 'SELECT (extract(epoch FROM now()) * 1000000)::bigint';

-- What the other Larders have to hear of: `kind` is 0 where rows were taken out, and `digests` with them, 1 where all was,
-- 2 where pins have changed.
CREATE TABLE larder.changes (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    noted_at bigint NOT NULL DEFAULT larder.microseconds(),
    holder integer NOT NULL,
    kind smallint NOT NULL,
    digests bytea[] NOT NULL
);
CREATE INDEX changes_by_age ON larder.changes (noted_at);

-- The bucket of [storage.s3] with which this store was once compared from the first key to the last.
ALTER TABLE larder.holders ADD COLUMN compared_with text COLLATE "C";
