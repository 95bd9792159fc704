"""submission.yaml: its fields, how it is read, and how a first one is written."""
