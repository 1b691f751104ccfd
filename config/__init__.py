"""Settings and logging; nothing else reads the environment."""
