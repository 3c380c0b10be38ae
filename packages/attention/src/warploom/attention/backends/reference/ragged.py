"""Rows of ragged tensors in plain torch: no host synchronisation, so all of it runs inside a CUDA graph."""

from __future__ import annotations

import torch


def request_of_row(indptr: torch.Tensor, num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The request that owns each row, by binary search.

    Parameters
    ----------
    indptr : torch.Tensor
        `[batch + 1]`, offsets of the requests, not decreasing.
    num_rows : int
        May exceed `indptr[-1]`: the rows beyond are padding, as in a captured graph.

    Returns
    -------
    request : torch.Tensor
        `[num_rows]`, int64; -1 for padding.
    offset : torch.Tensor
        `[num_rows]`, int64; the row's index within its request, 0 for padding.
    """
    rows = torch.arange(num_rows, device=indptr.device)
    starts = indptr.long()
    # The owner is the last request that starts at or before the row: empty requests in between are stepped over.
    found = torch.searchsorted(starts, rows, right=True) - 1
    owned = (found >= 0) & (rows < starts[-1])
    request = torch.where(owned, found, -1)
    return request, torch.where(owned, rows - starts[found.clamp(min=0)], 0)
