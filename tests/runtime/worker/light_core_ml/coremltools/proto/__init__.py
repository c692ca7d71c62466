"""Empty: a worker reads no specification."""
