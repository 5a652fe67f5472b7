-- Prepares each step: no activations, and the issued codes 1 to :codes. The checkpoint comes first, so that pages
-- made after it need no full image in the log, and so that the log reuses existing files. TRUNCATE and INSERT must
-- not be one transaction: with wal_level=minimal, the log would then not contain the pages, and each page would
-- need its full image at its first change.
TRUNCATE codes, activations RESTART IDENTITY;
CHECKPOINT;
INSERT INTO codes
    SELECT number, hash_of(number, 0), 0, now(), now() + interval '1 hour'
    FROM generate_series(1, :codes) AS number;
-- This informs the planner and sets the hint bits of every row.
ANALYZE codes;
SELECT count(*) FROM codes WHERE state = 0;
