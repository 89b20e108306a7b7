-- The bucket of [storage.s3] with which this store was once compared from the first key to the last.
ALTER TABLE larder.holders ADD COLUMN compared_with text COLLATE "C";
