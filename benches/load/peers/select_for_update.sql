-- One activation as most programs do it: lock the code, check it, change it, insert the activation. Each client
-- counts its own codes, so no code is used twice, and no client waits for another's lock.
\set number :turn * :clients + :client_id + 1
\set turn :turn + 1
BEGIN;
SELECT id, state, expires_at > now() AS live FROM codes WHERE hash = hash_of(:number, 0) FOR UPDATE \gset
UPDATE codes SET state = 1, consumed_at = now() WHERE id = :id;
INSERT INTO activations (code_id, machine, ssh_fingerprint, hostname, public_ip, opened_at)
    VALUES (:id, hash_of(:number, 1), hash_of(:number, 2),
            'ns' || :number || '.load.example.com', '45.0.0.0'::inet + :number, now());
COMMIT;
