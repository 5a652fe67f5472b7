-- The first schema. Keyed hashes (HMAC-SHA-256, cut to 16 bytes) and ids are bytes, which psql shows
-- in the same hexadecimal digits as the API and the console do. Times are whole seconds.

CREATE FUNCTION all_or_nothing(done bigint, wanted bigint) RETURNS boolean
LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF done = wanted THEN
        RETURN true;
    ELSIF done = 0 THEN
        RETURN false;
    END IF;
    RAISE EXCEPTION 'a change would have been written in part' USING ERRCODE = 'IP001';
END $$;
COMMENT ON FUNCTION all_or_nothing(bigint, bigint) IS
    'Whether all parts of a change were written; an error where some were and some were not.';

CREATE TABLE epoch (
    number bigint NOT NULL DEFAULT 1,
    since  timestamptz NOT NULL DEFAULT clock_timestamp(),
    one    boolean PRIMARY KEY DEFAULT true CHECK (one)
);
INSERT INTO epoch DEFAULT VALUES;
COMMENT ON TABLE epoch IS
    'Grows where this database was found to lack what servers had acknowledged: codes and open activations of before are void.';

CREATE TABLE agreed (
    what text PRIMARY KEY,
    hash bytea NOT NULL
);
COMMENT ON TABLE agreed IS 'What all servers on this database must have in common, as hashes.';

CREATE TABLE process (
    id         integer PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    name       uuid NOT NULL DEFAULT gen_random_uuid(),
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    batch      bigint NOT NULL DEFAULT 0,
    chained    bigint NOT NULL DEFAULT 0,
    ended      boolean NOT NULL DEFAULT false
) WITH (fillfactor = 50);
COMMENT ON TABLE process IS 'Every start of a server on this database.';
COMMENT ON COLUMN process.name IS
    'Tells it from one with the same id that was lost with a later state of this database.';
COMMENT ON COLUMN process.seen_at IS 'When it was last heard of.';
COMMENT ON COLUMN process.batch IS
    'The last commit of the process, written in that commit: after a broken connection it tells whether the commit came to be.';
COMMENT ON COLUMN process.chained IS 'The last of its events that stands in the audit log.';
COMMENT ON COLUMN process.ended IS 'It is gone, and all of its events stand in the audit log.';

CREATE TABLE code (
    number         bigint PRIMARY KEY,
    hash           bytea NOT NULL UNIQUE,
    product        text NOT NULL,
    session        bytea NOT NULL,
    issued_at      timestamptz NOT NULL,
    expires_at     timestamptz NOT NULL,
    activations    integer NOT NULL,
    consumed_by    bigint,
    consumed_by_id bytea,
    version        bigint NOT NULL,
    CONSTRAINT hashes_have_16_bytes CHECK (octet_length(hash) = 16 AND octet_length(session) = 16),
    CONSTRAINT product_has_two_letters CHECK (length(product) = 2),
    CONSTRAINT a_consumed_code_was_activated CHECK (consumed_by IS NULL OR activations > 0),
    CONSTRAINT consumed_by_a_named_activation
        CHECK ((consumed_by IS NULL) = (consumed_by_id IS NULL) AND octet_length(consumed_by_id) = 8),
    CONSTRAINT versions_begin_at_1 CHECK (version >= 1)
) WITH (fillfactor = 80);
COMMENT ON TABLE code IS 'Install codes. The code itself is stored nowhere.';
COMMENT ON COLUMN code.number IS 'The order of issue: seconds since 1970, the process, a counter.';
COMMENT ON COLUMN code.hash IS 'The keyed hash of the code, by which it is found.';
COMMENT ON COLUMN code.product IS 'The two letters of the product it installs.';
COMMENT ON COLUMN code.session IS 'The keyed hash of the browser session that asked for it.';
COMMENT ON COLUMN code.expires_at IS 'When it stops being good; a release moves it.';
COMMENT ON COLUMN code.activations IS 'How often it has been activated, releases not counted back.';
COMMENT ON COLUMN code.consumed_by IS 'The activation that holds it; null while it is issued.';
COMMENT ON COLUMN code.version IS 'How often the row has been written: every write names the version it was decided on.';

CREATE TABLE activation (
    number            bigint PRIMARY KEY,
    id                bytea NOT NULL UNIQUE,
    code              bytea NOT NULL,
    machine           bytea NOT NULL,
    fingerprint       bytea NOT NULL,
    hostname          text NOT NULL,
    public_ip         inet NOT NULL,
    requested_ref     text NOT NULL,
    installer_version text NOT NULL,
    signing_key       text NOT NULL,
    opened_at         timestamptz NOT NULL,
    expires_at        timestamptz NOT NULL,
    state             text NOT NULL,
    closed_at         timestamptz,
    version           bigint NOT NULL,
    CONSTRAINT ids_have_8_bytes CHECK (octet_length(id) = 8),
    CONSTRAINT hashes_have_16_bytes CHECK (
        octet_length(code) = 16 AND octet_length(machine) = 16 AND octet_length(fingerprint) = 16),
    CONSTRAINT states CHECK (state IN ('open', 'confirmed', 'released')),
    CONSTRAINT closed_when_not_open CHECK ((state = 'open') = (closed_at IS NULL)),
    CONSTRAINT versions_begin_at_1 CHECK (version >= 1)
) WITH (fillfactor = 80);
CREATE UNIQUE INDEX one_open_activation_of_a_code ON activation (code) WHERE state = 'open';
COMMENT ON TABLE activation IS 'One machine''s hold on a consumed code.';
COMMENT ON COLUMN activation.number IS 'The order of opening: seconds since 1970, the process, a counter.';
COMMENT ON COLUMN activation.id IS 'Its name in the API, after act_. A capability while it is open.';
COMMENT ON COLUMN activation.code IS 'The hash of the code it consumed.';
COMMENT ON COLUMN activation.machine IS 'The keyed hash of the machine id.';
COMMENT ON COLUMN activation.fingerprint IS 'The keyed hash of the SSH fingerprint.';
COMMENT ON COLUMN activation.signing_key IS 'The name of the key that signs its install token.';
COMMENT ON COLUMN activation.expires_at IS 'When its token runs out: an open activation has then lapsed.';
COMMENT ON COLUMN activation.closed_at IS 'When it was confirmed or released.';

CREATE TABLE server (
    number        integer PRIMARY KEY GENERATED BY DEFAULT AS IDENTITY,
    id            bytea NOT NULL UNIQUE,
    ip            inet NOT NULL,
    hostname      text NOT NULL,
    registered_at timestamptz NOT NULL,
    token         bytea NOT NULL,
    revoked       boolean NOT NULL,
    note          text NOT NULL,
    version       bigint NOT NULL,
    CONSTRAINT ids_have_8_bytes CHECK (octet_length(id) = 8),
    CONSTRAINT hashes_have_16_bytes CHECK (octet_length(token) = 16),
    CONSTRAINT versions_begin_at_1 CHECK (version >= 1)
);
COMMENT ON TABLE server IS 'Registered servers.';
COMMENT ON COLUMN server.number IS 'The order of registration.';
COMMENT ON COLUMN server.id IS 'Its name in the API, derived from its address.';
COMMENT ON COLUMN server.token IS 'The keyed hash of the token that last registered it.';

-- Narrow, and with nothing indexed that changes: a check-in rewrites a row in its own page.
CREATE TABLE presence (
    server    integer PRIMARY KEY REFERENCES server (number) ON DELETE CASCADE,
    last_seen timestamptz NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);
COMMENT ON TABLE presence IS 'When servers last registered or checked in.';

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

CREATE TABLE counter (
    key        bigint NOT NULL,
    window_end timestamptz NOT NULL,
    policy     text NOT NULL,
    before     integer NOT NULL DEFAULT 0,
    used       integer NOT NULL,
    allowed    bigint NOT NULL,
    PRIMARY KEY (key, window_end),
    CONSTRAINT used_is_counted CHECK (used >= 0)
) WITH (fillfactor = 70);
CREATE INDEX counter_window_end ON counter (window_end);
COMMENT ON TABLE counter IS 'What each limit has counted for each subject in one window.';
COMMENT ON COLUMN counter.before IS
    'What was used before it was last counted up: of requests that are counted together, some may be too many.';
COMMENT ON COLUMN counter.allowed IS 'What the limit allowed when it was last counted.';
COMMENT ON COLUMN counter.key IS 'Half of the keyed hash of the subject, with the policy mixed in.';

CREATE TABLE event (
    process    integer NOT NULL,
    seq        bigint NOT NULL,
    at         timestamptz NOT NULL,
    action     text NOT NULL,
    actor      text NOT NULL,
    source     inet,
    identity   bytea,
    code       bytea,
    activation bigint,
    digits     integer,
    server     bytea,
    address    inet,
    subject    text NOT NULL,
    detail     text NOT NULL,
    PRIMARY KEY (process, seq)
);
COMMENT ON TABLE event IS 'What happened: the entries of the audit log, which link puts in order.';
COMMENT ON COLUMN event.seq IS 'Rises with the commits of its process, which follow one another.';
COMMENT ON COLUMN event.source IS 'The network it came from.';
COMMENT ON COLUMN event.identity IS 'The keyed hash of a browser''s session or an installer''s machine.';
COMMENT ON COLUMN event.code IS 'The hash of the code it happened to.';
COMMENT ON COLUMN event.activation IS 'The number of the activation it happened to.';
COMMENT ON COLUMN event.digits IS 'The first four hexadecimal digits of the activation''s id.';
COMMENT ON COLUMN event.server IS 'The id of the server it happened to.';

CREATE TABLE link (
    first     bigint PRIMARY KEY,
    last      bigint NOT NULL,
    processes integer[] NOT NULL,
    seqs      bigint[] NOT NULL,
    before    bytea NOT NULL,
    after     bytea NOT NULL,
    latest    timestamptz NOT NULL,
    CONSTRAINT whole CHECK (
        cardinality(processes) = last - first + 1 AND cardinality(seqs) = last - first + 1
        AND octet_length(before) = 32 AND octet_length(after) = 32)
);
CREATE INDEX link_latest ON link (latest);
COMMENT ON TABLE link IS 'The order of the audit log and its chain of hashes, some entries to a row.';
COMMENT ON COLUMN link.first IS 'The number of its first entry.';
COMMENT ON COLUMN link.processes IS 'Its events, with seqs, in their order.';
COMMENT ON COLUMN link.before IS 'The hash of the entry before its first.';
COMMENT ON COLUMN link.after IS 'The hash of its last entry.';
COMMENT ON COLUMN link.latest IS 'The latest time of any entry up to its last.';

CREATE TABLE attempt (LIKE event INCLUDING INDEXES);
CREATE INDEX attempt_code ON attempt (code);
COMMENT ON TABLE attempt IS 'What was tried on codes and changed nothing: the first hundred of each code.';

CREATE TABLE attempts_of_code (
    code  bytea PRIMARY KEY,
    tried bigint NOT NULL
) WITH (fillfactor = 70);
COMMENT ON TABLE attempts_of_code IS 'How often something was tried on a code that changed nothing.';

CREATE TABLE setting (
    key   text PRIMARY KEY,
    value text NOT NULL
);
COMMENT ON TABLE setting IS 'What operators have changed at run time, over file, environment and flags.';
