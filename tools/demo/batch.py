"""The tensors that describe one step to the operators, built from the scheduler's decision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from scheduler import Work
from torch import Tensor


@dataclass(frozen=True)
class StepBatch:
    """One step. All tensors are int32 on the engine's device.

    Attributes
    ----------
    tokens : Tensor
        New tokens of all requests, `[nnz]`.
    qo_indptr : Tensor
        Where each request's new tokens begin, `[batch + 1]`.
    kv_lens : Tensor
        Cached tokens of each request, this step's included, `[batch]`.
    kv_indptr, kv_indices, kv_last_page_len : Tensor
        Page table in packed (CSR) form: `[batch + 1]`, `[pages in use]`, `[batch]`.
    sampled_rows : Tensor
        Rows of `tokens` whose logits are wanted, `[samples]`.
    """

    tokens: Tensor
    qo_indptr: Tensor
    kv_lens: Tensor
    kv_indptr: Tensor
    kv_indices: Tensor
    kv_last_page_len: Tensor
    sampled_rows: Tensor

    @classmethod
    def build(cls, works: Sequence[Work], page_size: int, device: torch.device) -> StepBatch:
        """Lay out a step and move it to the device in one copy."""
        kv_lens = [w.request.num_cached + w.num_new for w in works]
        qo_indptr = [0, *accumulate(w.num_new for w in works)]
        parts = (
            [t for w, end in zip(works, kv_lens, strict=True) for t in w.request.tokens[w.request.num_cached : end]],
            qo_indptr,
            kv_lens,
            [0, *accumulate(len(w.request.pages) for w in works)],
            [page for w in works for page in w.request.pages],
            [(length - 1) % page_size + 1 for length in kv_lens],
            [end - 1 for w, end in zip(works, qo_indptr[1:], strict=True) if w.samples],
        )
        flat = torch.tensor([value for part in parts for value in part], dtype=torch.int32).to(device)
        return cls(*flat.split([len(part) for part in parts]))
