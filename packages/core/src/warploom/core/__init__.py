"""Warploom core."""
