-- Tables that SQL users read: cells, scores, submissions, quantizers, quantized_models, survival,
-- and the view documents. Integer ids join them; texts that repeat across cells are kept once.

CREATE TABLE submissions (
    id INTEGER PRIMARY KEY,
    digest VARCHAR NOT NULL UNIQUE,  -- of the whole manifest snapshot
    name VARCHAR NOT NULL,
    title VARCHAR NOT NULL,
    method VARCHAR NOT NULL,
    corpus VARCHAR NOT NULL,
    kind VARCHAR NOT NULL,
    role VARCHAR NOT NULL,
    target VARCHAR,
    retrain VARCHAR,
    base_model VARCHAR,
    base_revision VARCHAR,
    weights VARCHAR NOT NULL,
    revision VARCHAR,
    weights_sha256 VARCHAR,
    folder VARCHAR NOT NULL,
    hyperparameters JSON NOT NULL,
    authors VARCHAR[] NOT NULL,
    paper_url VARCHAR,
    license VARCHAR,
    notes VARCHAR
);

CREATE TABLE quantizers (
    id INTEGER PRIMARY KEY,
    digest VARCHAR NOT NULL UNIQUE,  -- of the whole specification
    name VARCHAR NOT NULL,
    backend VARCHAR NOT NULL,
    bits INTEGER NOT NULL,
    group_size INTEGER,
    "symmetric" BOOLEAN,
    label VARCHAR NOT NULL,
    calibration VARCHAR,
    options JSON NOT NULL
);

-- One row per submission x quantizer (and digest): the read-back proof. All its cells share it.
CREATE TABLE quantized_models (
    id INTEGER PRIMARY KEY,
    digest VARCHAR NOT NULL UNIQUE,  -- of submission, quantizer, proof and survival
    submission VARCHAR NOT NULL,
    quantizer VARCHAR NOT NULL,
    proven BOOLEAN NOT NULL,  -- false where there is no proof (16-bit reference, failures)
    linear_layers INTEGER,
    quantized_layers INTEGER,
    parameter_share DOUBLE,
    max_levels BIGINT,
    group_size INTEGER,
    bits_per_weight DOUBLE,
    size_bytes BIGINT,
    max_abs_error DOUBLE,
    relative_error DOUBLE,
    codes_sha256 VARCHAR,
    dense_modules VARCHAR[],
    remarks VARCHAR[]
);

CREATE TABLE survival (
    model_id INTEGER NOT NULL,
    position INTEGER NOT NULL,
    layer VARCHAR NOT NULL,
    codes_changed DOUBLE NOT NULL,
    update_in_steps DOUBLE,
    relative_update DOUBLE NOT NULL,
    survival_ratio DOUBLE,
    cosine DOUBLE,
    num_weights BIGINT NOT NULL
);

CREATE TABLE cells (
    id INTEGER PRIMARY KEY,
    key VARCHAR NOT NULL UNIQUE,
    submission VARCHAR NOT NULL,
    quantizer VARCHAR NOT NULL,
    task VARCHAR NOT NULL,
    corpus VARCHAR NOT NULL,
    status VARCHAR NOT NULL,  -- finished, failed, skipped, cancelled
    reason VARCHAR,
    stage VARCHAR,
    error_type VARCHAR,
    log_tail VARCHAR,
    document_limit INTEGER,
    remarks VARCHAR[] NOT NULL,
    timings JSON NOT NULL,  -- seconds by stage
    peak_memory_bytes BIGINT,
    created_at VARCHAR NOT NULL,  -- ISO 8601, UTC
    git_commit VARCHAR,
    dirty BOOLEAN NOT NULL,
    device VARCHAR NOT NULL,
    threads INTEGER NOT NULL,
    seed BIGINT NOT NULL,
    scoring_version INTEGER NOT NULL,
    versions JSON NOT NULL,
    submission_id INTEGER NOT NULL,
    quantizer_id INTEGER NOT NULL,
    model_id INTEGER  -- NULL where the cell has neither proof nor survival
);

CREATE TABLE scores (
    cell_id INTEGER NOT NULL,
    position INTEGER NOT NULL,
    metric VARCHAR NOT NULL,
    value DOUBLE,  -- fraction, except privleak: percent
    num_docs INTEGER NOT NULL,
    missing_reason VARCHAR
);

CREATE TABLE texts (
    id INTEGER PRIMARY KEY,
    sha256 VARCHAR NOT NULL,
    excerpt VARCHAR NOT NULL
);

CREATE TABLE answers (
    id INTEGER PRIMARY KEY,
    response VARCHAR NOT NULL
);

CREATE TABLE document_rows (
    cell_id INTEGER NOT NULL,
    position INTEGER NOT NULL,
    document INTEGER NOT NULL,
    split VARCHAR NOT NULL,
    prompt_id INTEGER NOT NULL,
    answer_id INTEGER NOT NULL,
    reference_id INTEGER,
    reference_excerpt VARCHAR,  -- only where there is no reference digest
    scores MAP(VARCHAR, DOUBLE) NOT NULL,
    invalid_reason VARCHAR
);

CREATE VIEW documents AS
SELECT c.key, c.submission, c.quantizer, c.task, d.document, d.split,
       p.sha256 AS prompt_sha256, p.excerpt AS prompt_excerpt, a.response,
       r.sha256 AS reference_sha256, coalesce(r.excerpt, d.reference_excerpt) AS reference_excerpt,
       d.scores, d.invalid_reason
FROM document_rows d
JOIN cells c ON c.id = d.cell_id
JOIN texts p ON p.id = d.prompt_id
JOIN answers a ON a.id = d.answer_id
LEFT JOIN texts r ON r.id = d.reference_id
ORDER BY d.cell_id, d.position;
