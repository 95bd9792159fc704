-- Mean error and symmetry as found, for rows written from here on; NULL in older ones: not measured.
-- All errors are NULL for a checkpoint submitted quantized whose 16-bit weights are not known.

ALTER TABLE quantized_models ADD COLUMN mean_abs_error DOUBLE;
ALTER TABLE quantized_models ADD COLUMN "symmetric" BOOLEAN;
