"""One model at work: greedy generation and log-probabilities, in batches."""
