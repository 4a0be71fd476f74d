"""Malformed inputs, made from a seed: each must be accepted or refused with one line."""
