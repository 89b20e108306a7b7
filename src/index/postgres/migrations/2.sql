-- The replicas that share the index, by the URL at which the others reach each. `epoch` is the number of the process,
-- `holder` its store;
-- a replica is alive until `alive_until`, by this server's clock.
CREATE TABLE larder.replicas (
    address text COLLATE "C" PRIMARY KEY,
    epoch bigint NOT NULL,
    holder integer NOT NULL,
    alive_until timestamptz NOT NULL
);

-- What the other Larders have to hear of: `kind` is 0 where rows were taken out, and `digests` with them, 1 where all was,
-- 2 where pins have changed. Read in the order of `transaction`.
CREATE TABLE larder.changes (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    transaction xid8 NOT NULL DEFAULT pg_current_xact_id(),
    noted_at timestamptz NOT NULL DEFAULT now(),
    holder integer NOT NULL,
    kind smallint NOT NULL,
    digests bytea[] NOT NULL
);
CREATE INDEX changes_in_order ON larder.changes (transaction, id);
