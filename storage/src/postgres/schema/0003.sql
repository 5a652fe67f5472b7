-- What servers tell each other of check-ins, some thousand to a row: without it each would read all of
-- presence again and again, of which no index tells what is new.
CREATE TABLE sighting (
    process integer NOT NULL,
    seq     bigint NOT NULL,
    at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    servers bigint[] NOT NULL,
    times   timestamptz[] NOT NULL,
    PRIMARY KEY (process, seq),
    CONSTRAINT each_has_a_time CHECK (cardinality(servers) = cardinality(times))
);
ALTER TABLE sighting ALTER COLUMN servers SET STORAGE EXTERNAL, ALTER COLUMN times SET STORAGE EXTERNAL;
COMMENT ON TABLE sighting IS 'Who has checked in lately, for the other servers. Kept for ten minutes.';
COMMENT ON COLUMN sighting.servers IS 'Their ids, as signed numbers: to_hex shows them as the API does.';
COMMENT ON COLUMN sighting.times IS 'When each of them was seen.';
