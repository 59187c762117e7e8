-- The same text for SQLite and PostgreSQL. SQLite takes any name of a type and stores bytes as they are.

-- The clock as the last sweep saw it: see sql_clock.py.
CREATE TABLE clock (seen_s DOUBLE PRECISION NOT NULL);
INSERT INTO clock VALUES (0);

CREATE TABLE counters (
    last_number BIGINT NOT NULL,
    -- Jobs of normal priority that were claimed since the last one of low priority.
    normal_in_a_row BIGINT NOT NULL
);
INSERT INTO counters VALUES (0, 0);

-- Start-time fair queueing: the virtual time of each priority, in seconds of audio.
CREATE TABLE lanes (priority SMALLINT PRIMARY KEY, virtual_time DOUBLE PRECISION NOT NULL);
INSERT INTO lanes VALUES (0, 0), (1, 0);

-- The start tag of an owner's next job, where it is later than the virtual time.
CREATE TABLE shares (
    owner TEXT NOT NULL,
    priority SMALLINT NOT NULL,
    finish_tag DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (owner, priority)
);

CREATE TABLE jobs (
    job_id TEXT PRIMARY KEY,
    number BIGINT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    state TEXT NOT NULL,
    priority SMALLINT NOT NULL,
    request TEXT NOT NULL,
    metadata TEXT,
    webhook_url TEXT,
    ttl_s DOUBLE PRECISION NOT NULL,
    upload_bytes BIGINT NOT NULL,
    audio_s DOUBLE PRECISION,
    done_s DOUBLE PRECISION NOT NULL DEFAULT 0,
    created_at_s DOUBLE PRECISION NOT NULL,
    started_at_s DOUBLE PRECISION,
    ended_at_s DOUBLE PRECISION,
    expires_at_s DOUBLE PRECISION,
    error_code TEXT,
    error_message TEXT,
    idempotency_key TEXT,
    idempotency_digest TEXT,
    idempotent_until_s DOUBLE PRECISION,
    -- Fair queueing, in seconds of audio.
    start_tag DOUBLE PRECISION NOT NULL,
    cost DOUBLE PRECISION NOT NULL,
    -- The worker's.
    lease TEXT,
    lease_until_s DOUBLE PRECISION,
    lost_workers BIGINT NOT NULL DEFAULT 0,
    -- The checkpoint's.
    generation BIGINT NOT NULL DEFAULT 0,
    provenance TEXT,
    part_count BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX jobs_by_owner ON jobs (owner, number);
CREATE INDEX jobs_by_state ON jobs (owner, state, number);
CREATE INDEX jobs_queue ON jobs (priority, start_tag, number) WHERE state = 'queued';
CREATE INDEX jobs_last_tag ON jobs (owner, priority, start_tag) WHERE state = 'queued';
CREATE INDEX jobs_leases ON jobs (lease_until_s) WHERE state = 'running';
CREATE INDEX jobs_expiry ON jobs (expires_at_s) WHERE expires_at_s IS NOT NULL;
CREATE UNIQUE INDEX jobs_idempotency ON jobs (owner, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX jobs_idempotency_end ON jobs (idempotent_until_s) WHERE idempotent_until_s IS NOT NULL;

CREATE TABLE parts (
    job_id TEXT NOT NULL REFERENCES jobs ON DELETE CASCADE,
    number BIGINT NOT NULL,
    data BYTEA NOT NULL,
    PRIMARY KEY (job_id, number)
);

CREATE TABLE results (
    job_id TEXT PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
    data BYTEA NOT NULL
);

-- Without a reference to jobs: a message is delivered even if its job is deleted first.
CREATE TABLE deliveries (
    delivery_id TEXT PRIMARY KEY,
    job_id TEXT NOT NULL,
    state TEXT NOT NULL,
    metadata TEXT,
    webhook_url TEXT NOT NULL,
    created_at_s DOUBLE PRECISION NOT NULL,
    tries BIGINT NOT NULL DEFAULT 0,
    -- NULL: settled.
    next_try_at_s DOUBLE PRECISION,
    is_delivered SMALLINT NOT NULL DEFAULT 0,
    error TEXT
);
CREATE INDEX deliveries_by_job ON deliveries (job_id);
CREATE INDEX deliveries_due ON deliveries (next_try_at_s) WHERE next_try_at_s IS NOT NULL;
