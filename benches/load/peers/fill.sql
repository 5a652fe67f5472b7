-- Before every step: no activations, and codes 1 to :codes issued. The checkpoint comes first, so that pages
-- made after it need no full image in the log, and so that the log goes on in files that were written before.
-- TRUNCATE and INSERT must not be one transaction: under wal_level=minimal that would leave the pages out of the
-- log, and each would need its full image when it is first changed.
TRUNCATE codes, activations RESTART IDENTITY;
CHECKPOINT;
INSERT INTO codes
    SELECT number, hash_of(number, 0), 0, now(), now() + interval '1 hour'
    FROM generate_series(1, :codes) AS number;
-- For the planner, and to set the hint bits of every row.
ANALYZE codes;
SELECT count(*) FROM codes WHERE state = 0;
