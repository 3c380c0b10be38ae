"""Warploom attention."""
