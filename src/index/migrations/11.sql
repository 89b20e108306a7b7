-- The number of the upload by which an object's content is in the bucket of [storage.s3]: a part of its key there.
-- NULL: it is only in the files here.
ALTER TABLE objects ADD COLUMN generation BLOB;
