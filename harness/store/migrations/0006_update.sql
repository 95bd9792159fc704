-- What the update is before any quantizer, and the noise that it comes out with; NULL in older rows: not measured.

ALTER TABLE survival ADD COLUMN update_norm DOUBLE;
ALTER TABLE survival ADD COLUMN norm_ratio DOUBLE;
ALTER TABLE survival ADD COLUMN effective_rank DOUBLE;
