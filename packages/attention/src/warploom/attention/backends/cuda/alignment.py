"""How wide the accesses to strided tensors may be."""

from __future__ import annotations

import math

import torch

MAX_BYTES = 16  # the widest load and store of a thread


def common_alignment(tensor: torch.Tensor) -> int:
    """Bytes, a power of two up to 16, that divide the address, the strides and the length of the last dimension."""
    itemsize = tensor.element_size()
    steps = (stride for size, stride in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True) if size > 1)
    return math.gcd(MAX_BYTES, tensor.data_ptr(), tensor.shape[-1] * itemsize, *(step * itemsize for step in steps))


def vector_width(*tensors: torch.Tensor) -> int:
    """Elements of one access in every tensor: 16 bytes of the widest dtype if all are aligned to it, else 1."""
    width = MAX_BYTES // max(tensor.element_size() for tensor in tensors)
    return width if all(common_alignment(tensor) >= width * tensor.element_size() for tensor in tensors) else 1
