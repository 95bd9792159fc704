"""How a submission comes in: manifest, safety scan, one merged checkpoint."""
