-- Several requests are counted at once: how many of them depends on where the counter stood.
ALTER TABLE counter ADD COLUMN before integer NOT NULL DEFAULT 0;
COMMENT ON COLUMN counter.before IS 'What was used before it was last counted up.';
