"""Kafka usage events in, settled PacSpace balances out: nothing lost, nothing counted twice."""
