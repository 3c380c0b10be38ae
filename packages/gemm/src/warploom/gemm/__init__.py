"""Warploom gemm."""
