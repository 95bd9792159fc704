"""What a worker process may touch and say."""
