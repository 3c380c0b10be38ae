"""Rotation of new queries and keys, then an append, in plain torch."""

from __future__ import annotations

import torch

from warploom.attention.backends.reference.page import ReferenceAppend
from warploom.attention.backends.reference.rope import ReferenceRope
from warploom.attention.problems.rope import RopeScaling
from warploom.attention.problems.rope_append import RopeAppendProblem
from warploom.core.backends import Backend, Support


class ReferenceRopeAppend(Backend):
    name = "reference"

    def supports(self, problem: RopeAppendProblem) -> Support:
        return Support()

    def run(
        self,
        problem: RopeAppendProblem,
        scaling: RopeScaling,
        q_out: torch.Tensor,  # [nnz, num_qo_heads, head_dim]; may be q
        k_cache: torch.Tensor,  # [pages, page_size, num_kv_heads, dim], any strides; so is v_cache
        v_cache: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,  # [nnz, num_kv_heads, dim]; so is v
        v: torch.Tensor,
        batch_indices: torch.Tensor,
        positions: torch.Tensor,
        kv_indices: torch.Tensor,
        kv_indptr: torch.Tensor,
    ) -> None:
        q_turned, k_turned = torch.empty_like(q), torch.empty_like(k)
        ReferenceRope().run(problem.rope, scaling, q_turned, k_turned, q, k, positions)
        owned = (batch_indices >= 0) & (positions >= 0)
        q_out.copy_(torch.where(owned.view(-1, 1, 1), q_turned, q))
        tables = batch_indices, positions, kv_indices, kv_indptr
        ReferenceAppend().run(problem.append, k_cache, v_cache, k_turned, v, *tables)
