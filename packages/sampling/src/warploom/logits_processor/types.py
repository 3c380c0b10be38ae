"""What flows through a pipe."""

from __future__ import annotations

import enum

__all__ = ["TensorType"]


class TensorType(enum.Enum):
    """Meaning of the tensor between two processors.

    Examples
    --------
    >>> TensorType.PROBS.value
    'probs'
    """

    LOGITS = "logits"  # [rows, vocab], any float type
    PROBS = "probs"  # [rows, vocab], relative to the sum of each row
    INDICES = "indices"  # [rows], int32 token ids
