"""Warploom comm."""
