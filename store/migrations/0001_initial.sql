-- Times are nanoseconds since 1970, 0 is none. Numbers of states and types are
-- the API's. Columns are what is asked for; the rest is in document (JSON).

CREATE TABLE environments (
	key        INTEGER PRIMARY KEY,
	project    TEXT    NOT NULL,
	location   TEXT    NOT NULL,
	id         TEXT    NOT NULL,
	uuid       TEXT    NOT NULL UNIQUE,
	state      INTEGER NOT NULL,
	created    INTEGER NOT NULL,
	updated    INTEGER NOT NULL,
	generation INTEGER NOT NULL,
	revision   INTEGER NOT NULL,
	config     BLOB, -- google.cloud.orchestration.airflow.service.v1.EnvironmentConfig
	document   TEXT    NOT NULL,
	UNIQUE (project, location, id)
) STRICT;

-- CREATING, UPDATING and DELETING.
CREATE INDEX environments_unsettled ON environments (project, location, id) WHERE state IN (1, 3, 4);

CREATE TABLE reservations (
	environment INTEGER NOT NULL REFERENCES environments (key) ON DELETE CASCADE,
	network     TEXT    NOT NULL,
	prefix      TEXT    NOT NULL,
	kind        TEXT    NOT NULL
) STRICT;

CREATE INDEX reservations_network ON reservations (network);
CREATE INDEX reservations_environment ON reservations (environment);

CREATE TABLE operations (
	project     TEXT    NOT NULL,
	location    TEXT    NOT NULL,
	id          TEXT    NOT NULL,
	target_uuid TEXT    NOT NULL,
	created     INTEGER NOT NULL,
	ended       INTEGER NOT NULL,
	done        INTEGER NOT NULL,
	document    TEXT    NOT NULL,
	PRIMARY KEY (project, location, id)
) STRICT;

CREATE INDEX operations_newest ON operations (created DESC, id DESC);
CREATE INDEX operations_newest_of_project ON operations (project, created DESC, id DESC);
CREATE INDEX operations_ended ON operations (ended) WHERE done = 1;
-- An environment has one operation at a time.
CREATE UNIQUE INDEX operations_running ON operations (target_uuid) WHERE done = 0;

CREATE TABLE requests (
	project            TEXT    NOT NULL,
	id                 TEXT    NOT NULL,
	fingerprint        TEXT    NOT NULL,
	created            INTEGER NOT NULL,
	operation_project  TEXT    NOT NULL,
	operation_location TEXT    NOT NULL,
	operation_id       TEXT    NOT NULL,
	PRIMARY KEY (project, id),
	FOREIGN KEY (operation_project, operation_location, operation_id)
		REFERENCES operations (project, location, id)
		ON DELETE CASCADE DEFERRABLE INITIALLY DEFERRED
) STRICT;

CREATE INDEX requests_operation ON requests (operation_project, operation_location, operation_id);
