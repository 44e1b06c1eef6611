-- The existing cluster that an environment has; empty where a driver makes one.
-- No two environments can have the same one.
ALTER TABLE environments ADD COLUMN cluster TEXT NOT NULL DEFAULT '';

CREATE UNIQUE INDEX environments_cluster ON environments (cluster) WHERE cluster <> '';
