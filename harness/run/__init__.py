"""Plan jobs and run them: every planned cell ends as a stored row."""
