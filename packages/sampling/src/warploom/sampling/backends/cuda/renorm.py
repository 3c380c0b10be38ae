"""Launch of the kernels of `renorm.cuh`."""

from __future__ import annotations

import functools

import torch

from warploom.core.backends import Backend, Support
from warploom.core.device import sm_count
from warploom.core.jit import KernelSpec, cpp_type
from warploom.sampling.backends.cuda.draw import DrawParams, filter_bits, filter_params
from warploom.sampling.backends.cuda.rows import ROW_THREADS, RowShape, launch_rows, row_shape, vocab_fits
from warploom.sampling.parameters import FilterParameters, RowParameter
from warploom.sampling.problems.renorm import RenormProblem, TopKMaskProblem
from warploom.sampling.steps import SOFTMAX

__all__ = ["CudaRenorm", "CudaTopKMask", "mask_spec", "renorm_spec"]

_NEUTRAL = RowParameter(None, 1)


def _blocks_per_sm(dtype: torch.dtype, from_logits: bool, resident: bool) -> int:
    """Exact weights of logits take registers, and so do 16-bit values."""
    if dtype.itemsize == 4:
        return 3 if resident and not from_logits else 2
    return 2 if resident else 1


def _spec(kernel: str, dtype: torch.dtype, out: torch.dtype, from_logits: bool, resident: bool) -> KernelSpec:
    return KernelSpec(
        family="sampling",
        header="warploom/sampling/renorm.cuh",
        kernel=f"warploom::sampling::{kernel}",
        config={
            "In": cpp_type(dtype),
            "Out": cpp_type(out),
            "kFromLogits": from_logits,
            "kResident": resident,
            "kThreads": ROW_THREADS,
            "kBlocksPerSm": _blocks_per_sm(dtype, from_logits, resident),
        },
        params=(DrawParams,),
    )


@functools.cache
def renorm_spec(dtype: torch.dtype, from_logits: bool, resident: bool) -> KernelSpec:
    """The kernel that filters logits, or probabilities, of `dtype`."""
    return _spec("renorm_kernel", dtype, torch.float32 if from_logits else dtype, from_logits, resident)


@functools.cache
def mask_spec(dtype: torch.dtype, resident: bool) -> KernelSpec:
    """The kernel that masks logits of `dtype`."""
    return _spec("top_k_mask_kernel", dtype, dtype, True, resident)


def _shape(source: torch.Tensor, arch: int) -> RowShape:
    return row_shape(*source.shape, source.element_size(), arch, sm_count(source.device))


def _launch(spec: KernelSpec, params: DrawParams, source: torch.Tensor, shape: RowShape) -> None:
    launch_rows(spec, params, source.device, rows=source.shape[0], parts=shape.parts, smem=shape.share_bytes)


class CudaRenorm(Backend):
    """One read and one write of the row; the thresholds are found on chip."""

    name = "cuda"
    needs_gpu = True
    min_arch = 80

    def supports(self, problem: RenormProblem) -> Support:
        return Support.of(vocab_fits(problem.vocab))

    def run(
        self, problem: RenormProblem, out: torch.Tensor, source: torch.Tensor, parameters: FilterParameters
    ) -> None:
        """Write the distribution at the end of the chain, ``[batch, vocab]``; `out` may be `source`."""
        params = DrawParams(**filter_params(source, out, parameters), filters=filter_bits(problem.steps))
        shape = _shape(source, problem.arch)
        spec = renorm_spec(problem.dtype, SOFTMAX in problem.steps, shape.resident)
        _launch(spec, params, source, shape)


class CudaTopKMask(Backend):
    """One read and one write of the row."""

    name = "cuda"
    needs_gpu = True
    min_arch = 80

    def supports(self, problem: TopKMaskProblem) -> Support:
        return Support.of(vocab_fits(problem.vocab))

    def run(self, problem: TopKMaskProblem, out: torch.Tensor, logits: torch.Tensor, top_k: RowParameter) -> None:
        """Write the masked logits, ``[batch, vocab]``; `out` may be `logits`."""
        parameters = FilterParameters(_NEUTRAL, top_k, _NEUTRAL, _NEUTRAL)
        params = DrawParams(**filter_params(logits, out, parameters), filters=filter_bits(("top_k",)))
        shape = _shape(logits, problem.arch)
        _launch(mask_spec(problem.dtype, shape.resident), params, logits, shape)
