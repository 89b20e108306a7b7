-- The bucket of [storage.s3] with which this index was once compared from the first key to the last: at most one row. An
-- index that is begun anew has none.
CREATE TABLE compared (bucket TEXT NOT NULL);
