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

-- Short arrays, written anew each time: kept in their row.
CREATE TABLE charge (
    id     uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    number bigint NOT NULL DEFAULT 0,
    at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    keys   bigint[],
    ends   timestamptz[],
    before integer[],
    used   integer[],
    CONSTRAINT of_one_length CHECK (
        cardinality(keys) = cardinality(ends) AND cardinality(keys) = cardinality(before)
        AND cardinality(keys) = cardinality(used))
);
ALTER TABLE charge ALTER COLUMN keys SET STORAGE MAIN, ALTER COLUMN ends SET STORAGE MAIN,
    ALTER COLUMN before SET STORAGE MAIN, ALTER COLUMN used SET STORAGE MAIN;
COMMENT ON TABLE charge IS 'What each server has counted last: after a broken connection it tells whether that came to be.';
COMMENT ON COLUMN charge.number IS 'The last statement of the server that counted.';
COMMENT ON COLUMN charge.at IS 'When that was.';
COMMENT ON COLUMN charge.keys IS 'The counters it counted up, with ends, from before to used.';

CREATE FUNCTION is_news(known timestamptz, seen timestamptz, latest timestamptz) RETURNS boolean
LANGUAGE sql STABLE AS $$ SELECT known < seen OR known > latest + interval '1 minute' $$;
COMMENT ON FUNCTION is_news IS
    'Whether a server was seen after the time that is known, or that time lies in the future: by more than a minute after the latest time that is written with it.';
