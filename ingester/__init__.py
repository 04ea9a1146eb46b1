"""Kafka usage events in, settled PacSpace balances out: nothing lost, nothing counted twice."""

__version__ = "0.1.0"
