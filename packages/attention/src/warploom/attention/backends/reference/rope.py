"""Rotary position embeddings in plain torch."""

from __future__ import annotations

import torch

from warploom.attention.backends.reference.ragged import request_of_row
from warploom.attention.backends.reference.rotation import cos_sin, frequencies, llama31_frequencies, rotate
from warploom.attention.problems.rope import RopeProblem, RopeScaling
from warploom.core.backends import Backend, Support


class ReferenceRope(Backend):
    name = "reference"

    def supports(self, problem: RopeProblem) -> Support:
        return Support()

    def run(
        self,
        problem: RopeProblem,
        scaling: RopeScaling,
        q_out: torch.Tensor,  # [nnz, heads, head_dim]; may be q, as k_out may be k
        k_out: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        places: torch.Tensor | tuple[torch.Tensor, torch.Tensor],  # positions [nnz], or requests' indptr and offsets
    ) -> None:
        device = q.device
        positions = places if isinstance(places, torch.Tensor) else ragged_positions(*places, q.shape[0])
        if scaling.old_context_len:
            freqs = llama31_frequencies(
                problem.rotary_dim,
                scaling.rope_scale,
                scaling.rope_theta,
                scaling.low_freq_factor,
                scaling.high_freq_factor,
                scaling.old_context_len,
                device,
            )
        else:
            freqs = frequencies(problem.rotary_dim, scaling.rope_scale, scaling.rope_theta, device)
        _rotate_both(problem, q_out, k_out, q, k, *cos_sin(positions, freqs))


class ReferenceCosSinCache(Backend):
    name = "reference"

    def supports(self, problem: RopeProblem) -> Support:
        return Support()

    def run(
        self,
        problem: RopeProblem,
        q_out: torch.Tensor,
        k_out: torch.Tensor,
        q: torch.Tensor,
        k: torch.Tensor,
        positions: torch.Tensor,
        cos_sin_cache: torch.Tensor,  # [max_position, rotary_dim]: cosines, then sines
    ) -> None:
        cos, sin = cos_sin_cache[positions.long()].float().chunk(2, dim=-1)
        _rotate_both(problem, q_out, k_out, q, k, cos, sin)


def _rotate_both(
    problem: RopeProblem,
    q_out: torch.Tensor,
    k_out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> None:
    # [nnz, 1, rotary_dim / 2]: all heads of a token turn alike.
    q_out.copy_(rotate(q, cos[:, None], sin[:, None], problem.interleave))
    k_out.copy_(rotate(k, cos[:, None], sin[:, None], problem.interleave))


def ragged_positions(indptr: torch.Tensor, offsets: torch.Tensor, nnz: int) -> torch.Tensor:
    """Positions of ragged rows: their request's offset plus their index in it; 0, which turns nothing, for padding."""
    request, index = request_of_row(indptr, nnz)
    if offsets.shape[0] == 0:
        return index
    return torch.where(request >= 0, offsets.long()[request.clamp(min=0)] + index, 0)
