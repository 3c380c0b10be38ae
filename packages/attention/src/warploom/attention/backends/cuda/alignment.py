"""How wide the accesses to strided tensors may be."""

from __future__ import annotations

import math

import torch

MAX_BYTES = 16  # the widest load and store of a thread


def common_alignment(*tensors: torch.Tensor) -> int:
    """Bytes, a power of two up to 16, that divide every address, stride and length of a last dimension."""
    steps = [MAX_BYTES]
    for tensor in tensors:
        itemsize, shape, strides = tensor.element_size(), tensor.shape, tensor.stride()
        steps += (tensor.data_ptr(), shape[-1] * itemsize)
        steps += [strides[i] * itemsize for i in range(len(shape) - 1) if shape[i] > 1]
    return math.gcd(*steps)


def is_aligned(tensor: torch.Tensor, nbytes: int) -> bool:
    """Whether the elements of a last dimension lie together, and begin at multiples of so many bytes."""
    return tensor.stride(-1) == 1 and common_alignment(tensor) >= nbytes


def vector_width(*tensors: torch.Tensor) -> int:
    """Elements of one access in every tensor: 16 bytes of the widest dtype if all are aligned to it, else 1."""
    width = MAX_BYTES // max(tensor.element_size() for tensor in tensors)
    return width if all(common_alignment(tensor) >= width * tensor.element_size() for tensor in tensors) else 1
