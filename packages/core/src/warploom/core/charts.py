"""What charts have in common: their style, and what to say without matplotlib."""

from __future__ import annotations

from typing import Any

__all__ = ["CHART_STYLE", "NO_MATPLOTLIB"]

CHART_STYLE: Any = {"svg.fonttype": "none", "axes.spines.top": False, "axes.spines.right": False}  # text as text
NO_MATPLOTLIB = "matplotlib is not installed (pip install 'warploom-core[chart]')"
