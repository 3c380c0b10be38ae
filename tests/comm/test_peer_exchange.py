"""What a rank launches the exchange with: no GPU needed."""

import struct

import torch

from warploom.comm.backends.peer_exchange import all_gather_params, all_to_all_params, exchange_spec
from warploom.comm.peer_workspace import CHUNK_BYTES, MAX_BLOCKS, SLOTS, STAGING_BYTES


def fields(params):
    """Inputs, outputs, bytes sent and bytes received, of all places for ranks."""
    values = struct.unpack("@16P16q", params.packed)
    return [list(values[first : first + 8]) for first in range(0, 32, 8)]


def test_parts_lie_behind_one_another():
    x, out = torch.empty(9, 3, dtype=torch.int16), torch.empty(6, 3, dtype=torch.int16)
    inputs, outputs, sent, received = fields(all_to_all_params(out, x, [1, 0, 5], [4, 3, 2], 6))
    assert inputs == [x.data_ptr(), x.data_ptr() + 24, x.data_ptr() + 42, *[0] * 5]
    assert outputs == [out.data_ptr(), out.data_ptr() + 6, out.data_ptr() + 6, *[0] * 5]
    assert sent == [24, 18, 12, *[0] * 5]
    assert received == [6, 0, 30, *[0] * 5]


def test_all_gather_sends_the_same_to_all():
    x, out = torch.empty(5, dtype=torch.float32), torch.empty(8, 5)
    inputs, outputs, sent, received = fields(all_gather_params(out, x))
    assert inputs == [x.data_ptr()] * 8
    assert outputs == [row.data_ptr() for row in out]
    assert sent == received == [20] * 8


def test_the_largest_launch_has_a_ring_for_each_channel():
    config = exchange_spec(8).config
    assert (config["kChunkBytes"], config["kSlots"]) == (CHUNK_BYTES, SLOTS)
    assert MAX_BLOCKS * config["kMaxThreads"] // 64 * SLOTS * CHUNK_BYTES < STAGING_BYTES
