"""The safety scan: every file of a submission is checked before a library opens it."""
