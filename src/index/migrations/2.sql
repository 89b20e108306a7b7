-- When an object was last asked for: the order of eviction after a restart.
ALTER TABLE objects ADD COLUMN last_use INTEGER NOT NULL DEFAULT 0;
