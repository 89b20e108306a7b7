-- The images that were used last are found without looking at the others.
CREATE INDEX objects_by_use ON objects (last_use) WHERE media_type IS NOT NULL;
