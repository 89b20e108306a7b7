-- What only one of the Larders that share the index does at a time, and which store that Larder has, until when by this
-- server's clock.
CREATE TABLE larder.leases (
    name text COLLATE "C" PRIMARY KEY,
    holder integer NOT NULL,
    until timestamptz NOT NULL
);
