"""Warploom sampling."""
