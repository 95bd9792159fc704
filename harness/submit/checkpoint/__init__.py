"""From a submission to one merged 16-bit checkpoint."""
