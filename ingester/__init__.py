"""Kafka usage events in, settled PacSpace balances out: nothing lost, nothing counted twice."""

from importlib.metadata import version

__version__ = version("pacspace-ingester")
