-- PostgreSQL's tables. Every choice is in its favour.

-- Half of every page stays free, so that an UPDATE can write the new row on the same page and changes no index
-- (a heap-only tuple).
CREATE TABLE codes (
    id bigint PRIMARY KEY,
    hash bytea NOT NULL UNIQUE,
    state smallint NOT NULL,
    issued_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    consumed_at timestamptz
) WITH (fillfactor = 50);

-- The ids rise, and codes are consumed roughly in the order of their ids, so both indexes grow at one end. The
-- second index prevents two activations of one code, whatever the program does.
CREATE TABLE activations (
    id bigint GENERATED ALWAYS AS IDENTITY (CACHE 1000) PRIMARY KEY,
    code_id bigint NOT NULL UNIQUE,
    machine bytea NOT NULL,
    ssh_fingerprint bytea NOT NULL,
    hostname text NOT NULL,
    public_ip inet NOT NULL,
    opened_at timestamptz NOT NULL
);

-- 128 bits in no order, like an application's keyed hash of a code (salt 0), a machine (1) or a fingerprint (2).
-- The planner can inline this function. It uses two of PostgreSQL's own hashes and takes a tenth of a microsecond,
-- much less than a keyed hash.
CREATE FUNCTION hash_of(number bigint, salt bigint) RETURNS bytea IMMUTABLE LANGUAGE sql AS
    $$SELECT int8send(hashint8extended(number, 2 * salt))
          || int8send(hashint8extended(number, 2 * salt + 1))$$;
