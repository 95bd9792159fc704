-- Whether a model was run here, or its numbers were recomputed from the logs of another program's run.

ALTER TABLE cells ADD COLUMN origin VARCHAR DEFAULT 'scored';
