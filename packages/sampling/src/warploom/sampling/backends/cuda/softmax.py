"""Launch of the kernel of `softmax.cuh`."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch

from warploom.core.backends import Backend, Support
from warploom.core.jit import KernelSpec, ParamStruct, cpp_type, f32, i32, i64, ptr
from warploom.sampling.backends.cuda.draw import parameter_fields
from warploom.sampling.backends.cuda.rows import largest_cluster, launch_rows
from warploom.sampling.parameters import RowParameter
from warploom.sampling.problems.softmax import SoftmaxProblem

__all__ = ["CudaSoftmax", "LaunchShape", "launch_shape", "softmax_spec"]

_MAX_THREADS = 512
_BLOCKS_PER_SM = 2  # while one waits for its cluster, the other keeps the memory busy; leaves 64 registers a thread
_VECTORS = 8  # 16-byte loads of a thread in flight, and what it keeps of the row: 32 registers
_BLOCK_VECTORS = _MAX_THREADS * _VECTORS
_VECTORS_PER_THREAD = 4  # that a short row is divided into; fewer make reductions longer than loads


class SoftmaxParams(ParamStruct):
    cpp_name = "warploom::sampling::SoftmaxParams"
    logits: ptr
    probs: ptr
    temperature: ptr
    logits_stride: i64
    probs_stride: i64
    temperature_stride: i64
    temperature_value: f32
    vocab: i32


@functools.cache
def softmax_spec(dtype: torch.dtype, resident: bool) -> KernelSpec:
    """The kernel for logits of `dtype`, which keeps rows on chip or reads them twice."""
    return KernelSpec(
        family="sampling",
        header="warploom/sampling/softmax.cuh",
        kernel="warploom::sampling::softmax_kernel",
        config={
            "In": cpp_type(dtype),
            "kVectors": _VECTORS,
            "kResident": resident,
            "kMaxThreads": _MAX_THREADS,
            "kBlocksPerSm": _BLOCKS_PER_SM,
        },
        params=(SoftmaxParams,),
        expect_sass=("LDG.E.EF.128", "STG.E.128"),
    )


class LaunchShape(NamedTuple):
    """Blocks that share a row (a cluster if more than one), threads of each, and whether they hold the row on chip."""

    blocks: int
    threads: int
    resident: bool


@functools.cache
def launch_shape(vocab: int, itemsize: int, arch: int) -> LaunchShape:
    """The fewest blocks that hold a row on chip.

    The batch has no say: it would change the order of summation, and a row's result is not to depend on other rows.

    Examples
    --------
    >>> launch_shape(128256, 4, arch=90)
    LaunchShape(blocks=8, threads=512, resident=True)
    >>> launch_shape(1000, 4, arch=90)
    LaunchShape(blocks=1, threads=64, resident=True)
    >>> launch_shape(128256, 4, arch=80)
    LaunchShape(blocks=1, threads=512, resident=False)
    """
    vectors = math.ceil(vocab * itemsize / 16)
    blocks = 1
    while blocks < largest_cluster(arch) and math.ceil(vectors / blocks) > _BLOCK_VECTORS:
        blocks *= 2
    share = math.ceil(vectors / blocks)
    warps = math.ceil(share / (_VECTORS_PER_THREAD * 32))
    return LaunchShape(blocks, min(warps * 32, _MAX_THREADS), share <= _BLOCK_VECTORS)


class CudaSoftmax(Backend):
    """One read and one write of the row at memory speed."""

    name = "cuda"
    needs_gpu = True
    min_arch = 80

    def supports(self, problem: SoftmaxProblem) -> Support:
        return Support.of((problem.vocab < 2**30, f"vocab {problem.vocab} is over 2**30"))

    def run(
        self, problem: SoftmaxProblem, probs: torch.Tensor, logits: torch.Tensor, temperature: RowParameter
    ) -> None:
        """Write the probabilities of `logits` into `probs`, both ``[batch, vocab]``."""
        if problem.vocab > 1 and logits.stride(1) != 1:
            logits = logits.contiguous()
        params = SoftmaxParams(
            logits=logits,
            probs=probs,
            logits_stride=logits.stride(0),
            probs_stride=probs.stride(0),
            vocab=problem.vocab,
            **parameter_fields("temperature", temperature),
        )
        shape = launch_shape(problem.vocab, logits.element_size(), problem.arch)
        spec = softmax_spec(problem.dtype, shape.resident)
        launch_rows(spec, params, logits.device, rows=problem.batch, parts=shape.blocks, threads=shape.threads)
