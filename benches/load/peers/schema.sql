-- What PostgreSQL keeps, in its favour wherever there is a choice.

-- Half of every page stays free, so that the row that an UPDATE writes finds room beside the old one and no
-- index is touched (a heap-only tuple).
CREATE TABLE codes (
    id bigint PRIMARY KEY,
    hash bytea NOT NULL UNIQUE,
    state smallint NOT NULL,
    issued_at timestamptz NOT NULL,
    expires_at timestamptz NOT NULL,
    consumed_at timestamptz
) WITH (fillfactor = 50);

-- Rising ids, and codes consumed about in the order of theirs: both indexes grow at one end. The second one is
-- what keeps a code from two machines whatever the program does.
CREATE TABLE activations (
    id bigint GENERATED ALWAYS AS IDENTITY (CACHE 1000) PRIMARY KEY,
    code_id bigint NOT NULL UNIQUE,
    machine bytea NOT NULL,
    ssh_fingerprint bytea NOT NULL,
    hostname text NOT NULL,
    public_ip inet NOT NULL,
    opened_at timestamptz NOT NULL
);

-- 128 bits that nobody could order, as an application would bring along: a keyed hash of a code (salt 0), a
-- machine (1), a fingerprint (2). Written so that the planner puts it in place of its calls, and made of two of
-- PostgreSQL's own hashes: a tenth of a microsecond, far less than what it stands for.
CREATE FUNCTION hash_of(number bigint, salt bigint) RETURNS bytea IMMUTABLE LANGUAGE sql AS
    $$SELECT int8send(hashint8extended(number, 2 * salt))
          || int8send(hashint8extended(number, 2 * salt + 1))$$;
