-- How fast text comes back when a quantized model is trained on other text of the forget set: beside the cells, optional.

CREATE TABLE relearning (
    key VARCHAR PRIMARY KEY,
    submission VARCHAR NOT NULL,
    weights_sha256 VARCHAR NOT NULL,
    target VARCHAR NOT NULL,
    corpus VARCHAR NOT NULL,
    quantizer VARCHAR NOT NULL,
    recipe_sha256 VARCHAR NOT NULL,
    documents INTEGER NOT NULL,
    goal DOUBLE NOT NULL,  -- VerbMem of the target under the same quantizer, fraction
    half_step INTEGER,
    reason VARCHAR,  -- why there is no half_step
    curve JSON NOT NULL,
    device VARCHAR NOT NULL,
    seconds DOUBLE NOT NULL,
    created_at VARCHAR NOT NULL  -- ISO 8601, UTC
);
