"""Real processes, killed at every step of the delivery protocol: `make torture`."""
