-- Which entry a submission repeats with another seed.

ALTER TABLE submissions ADD COLUMN seed_of VARCHAR;
