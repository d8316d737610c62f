"""A CPU engine that executes Triton's intermediate representation."""
