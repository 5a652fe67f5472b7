-- Webhooks. Programs of before this step do not know these tables, and leave them alone.

CREATE TABLE webhook (
    name  text PRIMARY KEY,
    state bytea NOT NULL
) WITH (fillfactor = 50);
COMMENT ON TABLE webhook IS 'How far each webhook has heard of the audit log, what waits, and what was given up.';
COMMENT ON COLUMN webhook.state IS 'JSON. It names entries of the log by their numbers, and holds no secret.';

CREATE TABLE webhook_lease (
    one    boolean PRIMARY KEY DEFAULT true,
    holder integer NOT NULL,
    until  timestamptz NOT NULL,
    CONSTRAINT there_is_one CHECK (one)
) WITH (fillfactor = 50);
COMMENT ON TABLE webhook_lease IS 'Which server delivers. Another one takes over when its time is over.';
COMMENT ON COLUMN webhook_lease.holder IS 'The number of its start, in the table process.';
