"""Errors in data that a user can put right."""

from __future__ import annotations


class DataError(ValueError):
    """Data that cannot be used; the message is one line, also if a worker process raised it."""
