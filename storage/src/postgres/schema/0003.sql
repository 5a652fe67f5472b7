-- Access tokens, names in events, and servers that say who enrolled them.

CREATE TABLE access_token (
    number         integer PRIMARY KEY,
    name           text NOT NULL,
    role           text NOT NULL,
    secret         bytea NOT NULL,
    previous       bytea,
    previous_until timestamptz,
    created_at     timestamptz NOT NULL,
    expires_at     timestamptz,
    networks       text NOT NULL,
    addresses      text NOT NULL,
    max_servers    bigint NOT NULL,
    last_used      timestamptz NOT NULL,
    revoked_at     timestamptz,
    version        bigint NOT NULL,
    CONSTRAINT numbers_begin_at_1 CHECK (number >= 1),
    CONSTRAINT hashes_have_16_bytes CHECK (octet_length(secret) = 16 AND octet_length(previous) = 16),
    CONSTRAINT previous_has_an_end CHECK ((previous IS NULL) = (previous_until IS NULL)),
    CONSTRAINT versions_begin_at_1 CHECK (version >= 1)
) WITH (fillfactor = 50);
CREATE UNIQUE INDEX access_token_live_name ON access_token (name) WHERE revoked_at IS NULL;
COMMENT ON TABLE access_token IS 'Who may do what. The text of a token is stored nowhere.';
COMMENT ON COLUMN access_token.secret IS 'The keyed hash of its text.';
COMMENT ON COLUMN access_token.previous IS 'The keyed hash of its text before the last rotation.';
COMMENT ON COLUMN access_token.previous_until IS 'Until when that text is good.';
COMMENT ON COLUMN access_token.networks IS 'Where it may be used from, separated by blanks. Empty: anywhere.';
COMMENT ON COLUMN access_token.addresses IS 'Addresses that get install tickets of it, separated by blanks.';
COMMENT ON COLUMN access_token.max_servers IS 'How many servers it may enrol, revoked ones not counted. 0: no bound.';
COMMENT ON COLUMN access_token.last_used IS 'Written some seconds later. 1970: never.';

-- Programs of before this step may still be running: each new column has a value for what they write.
ALTER TABLE server
    ALTER COLUMN token DROP NOT NULL,
    ADD COLUMN address_id    bytea,
    ADD COLUMN enrolled_by   text NOT NULL DEFAULT 'unknown',
    ADD COLUMN access_token  integer,
    ADD COLUMN activation    bigint,
    ADD COLUMN digits        integer,
    ADD COLUMN credential_ms bigint NOT NULL DEFAULT 0,
    ADD COLUMN deleted       boolean NOT NULL DEFAULT false,
    ADD COLUMN changed_here  boolean NOT NULL DEFAULT true,
    ADD CONSTRAINT address_ids_have_8_bytes CHECK (octet_length(address_id) = 8),
    ADD CONSTRAINT an_activation_is_named CHECK ((activation IS NULL) = (digits IS NULL));
CREATE UNIQUE INDEX server_address ON server (coalesce(address_id, id));
CREATE INDEX server_access_token ON server (access_token)
    WHERE access_token IS NOT NULL AND NOT revoked AND NOT deleted;
COMMENT ON COLUMN server.id IS 'Its name in the API: that of its address, or the one that it was imported with.';
COMMENT ON COLUMN server.address_id IS 'The id of its address, where that is not its own.';
COMMENT ON COLUMN server.token IS
    'The keyed hash of the token that last registered it. Null: it was imported and has not registered since.';
COMMENT ON COLUMN server.enrolled_by IS
    'Who vouched for it when it last registered: master, token, activation, import or unknown.';
COMMENT ON COLUMN server.access_token IS 'The number of the access token that enrolled it.';
COMMENT ON COLUMN server.activation IS 'The number of the activation that enrolled it.';
COMMENT ON COLUMN server.digits IS 'The first four hexadecimal digits of the activation''s id.';
COMMENT ON COLUMN server.credential_ms IS
    'When the credential of its last registration was made, in milliseconds since 1970.';
COMMENT ON COLUMN server.deleted IS 'It is hidden, and kept so that its revocation holds and its tickets stay used.';
COMMENT ON COLUMN server.changed_here IS 'Whether another import leaves it alone.';

-- A program of before this step does not know an actor with a name. So it leaves these events to
-- others, and does not put them into the chain of hashes without the name.
COMMENT ON COLUMN event.actor IS 'Who did it; after a colon the name of the access token, if one was shown.';
