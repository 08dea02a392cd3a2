"""Stored soft-label distillation for vision: label crops once, train many students."""

__version__ = "0.1.0"
