-- What only one of the Larders that share the index does at a time, and which store that Larder has, until when by this
-- server's clock.
CREATE TABLE larder.leases (
    name text COLLATE "C" PRIMARY KEY,
    holder integer NOT NULL,
    until timestamptz NOT NULL
);

-- A change of the kind 6: something new is known of `tags`, each with four texts: repository, name, tag, shelf.
ALTER TABLE larder.changes ADD COLUMN tags text[];
