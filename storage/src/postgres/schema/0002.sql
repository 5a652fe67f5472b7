-- What is written on the way of no request moves out of rows that every commit writes.

-- Nobody settles the log's order meanwhile: this is the lock of whoever does, `IPTunlog` in ASCII.
SELECT pg_advisory_xact_lock(5282815226246098791);

CREATE TABLE chained (
    process integer PRIMARY KEY,
    seq     bigint NOT NULL
) WITH (fillfactor = 50);
COMMENT ON TABLE chained IS 'How far the events of each process stand in the audit log.';
COMMENT ON COLUMN chained.seq IS 'The last of its events that has a place there.';
INSERT INTO chained SELECT id, chained FROM process WHERE chained > 0;

-- A server of before this step reads the old column while it is being replaced. It finds that nothing
-- is left for it to settle, and goes on to hear of what the others have settled.
ALTER TABLE process ALTER COLUMN chained SET DEFAULT 9223372036854775807;
UPDATE process SET chained = DEFAULT;
-- Servers look for each other's starts by their names, in every tenth of a second.
CREATE UNIQUE INDEX process_name ON process (CAST(name AS text));
COMMENT ON COLUMN process.chained IS 'Read by programs that know only the first step of the schema.';
