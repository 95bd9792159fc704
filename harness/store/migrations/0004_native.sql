-- What the library's own kernel makes of a batch of real text, beside the dense model; NULL where none was run.

ALTER TABLE quantized_models ADD COLUMN native_max_difference DOUBLE;
ALTER TABLE quantized_models ADD COLUMN native_mean_difference DOUBLE;
ALTER TABLE quantized_models ADD COLUMN native_rounding_difference DOUBLE;
