"""The experiment of arXiv 2602.13151 as one command: train its models, score them, compare with its figures."""
