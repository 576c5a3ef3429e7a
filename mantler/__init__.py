"""Mantler: an inference mesh for machines you own."""

__version__ = "0.1.0"
