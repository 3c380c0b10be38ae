"""Which token goes to which rank, and where it lies there. Everything stays on the device."""

from __future__ import annotations

import torch

__all__ = ["collect", "rank_slots", "scatter_to_ranks"]


def rank_slots(experts: torch.Tensor, num_experts: int, size: int) -> torch.Tensor:
    """Place each token among those that its rank sends to each rank.

    Parameters
    ----------
    experts : torch.Tensor
        ``[tokens, top_k]`` integers. Rank r owns experts ``r * num_experts / size`` and so on; numbers outside
        ``[0, num_experts)`` mean no expert.
    num_experts, size : int
        Experts of all ranks together, and ranks.

    Returns
    -------
    torch.Tensor
        int32 ``[tokens, size]``: the place of the token in what this rank sends to rank r, in token order; -1 when no
        expert of rank r is chosen. A token with several experts of one rank is sent to it once.
    """
    wide = experts.long()
    valid = (wide >= 0) & (wide < num_experts)
    owner = torch.where(valid, wide // (num_experts // size), size)  # column `size` takes those that go nowhere
    chosen = torch.zeros(experts.shape[0], size + 1, dtype=torch.bool, device=experts.device)
    chosen = chosen.scatter(1, owner, True)[:, :size]
    places = chosen.cumsum(0, dtype=torch.int32) - 1
    return torch.where(chosen, places, -1).to(torch.int32)


def scatter_to_ranks(payload: torch.Tensor, slots: torch.Tensor, max_tokens: int) -> torch.Tensor:
    """Copy each token's row to its places, ``[size, max_tokens, ...]``, with zeros where no token goes."""
    tokens, size = slots.shape
    shape = (size, max_tokens, *payload.shape[1:])
    if payload.numel() == 0:
        return payload.new_zeros(shape)
    rows = payload.contiguous().view(tokens, -1).view(torch.uint8)
    # One row more for tokens that a rank does not get: dropping them would need their number on the host.
    sent = rows.new_zeros(size * max_tokens + 1, rows.shape[1])
    for rank in range(size):
        place = slots[:, rank].long()
        sent.index_copy_(0, torch.where(place >= 0, place + rank * max_tokens, size * max_tokens), rows)
    return sent[:-1].view(payload.dtype).view(shape)


def collect(returned: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
    """Add up ``returned [size, max_tokens, hidden]`` for each token in float32, in rank order: ``[tokens, hidden]``."""
    tokens, size = slots.shape
    total = torch.zeros(tokens, returned.shape[2], dtype=torch.float32, device=returned.device)
    if returned.shape[1] == 0:
        return total.to(returned.dtype)
    for rank in range(size):
        place = slots[:, rank].long()
        part = returned[rank].index_select(0, place.clamp_min(0)).float()
        total += torch.where((place >= 0).unsqueeze(1), part, 0.0)
    return total.to(returned.dtype)
