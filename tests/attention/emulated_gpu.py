"""A GPU that exists in memory of the host: launches of the attention kernels are carried out in Python, from their parameters.

What `plan` and `run` hand to the driver is tested that way: addresses, tables that the planner writes, what is kept from one
step to the next. Numbers are computed by the definition, so nothing is said about the kernels themselves.
"""

from __future__ import annotations

import ctypes
import struct
import zlib
from types import SimpleNamespace

import torch
from attention_oracle import attend

from warploom.attention import attention, options
from warploom.attention.backends.cuda.page import _seq_lens_launch
from warploom.attention.backends.cuda.persistent_attention import _planned_launch
from warploom.attention.backends.cuda.schedule import START_INTS
from warploom.attention.tables import RequestTables
from warploom.core.jit import KernelSpec
from warploom.core.jit import kernel as kernel_module
from warploom.core.problem import Problem

SM_COUNT = 2


class EmulatedGpu:
    """Takes the place of a GPU for tensors of the CPU, as long as the monkeypatch lasts; `launches` names the kernels."""

    def __init__(self, monkeypatch):
        self.launches = []
        self.parameters = []
        self.stream = 7
        where = {"device_type": "cuda", "arch": 90, "device_name": "emulated"}
        monkeypatch.setattr(Problem, "where", staticmethod(lambda at: where))
        monkeypatch.setattr(options, "sm_count", lambda at: SM_COUNT)
        # What the host does not look at when tensors are on a GPU.
        monkeypatch.setattr(RequestTables, "validate", lambda tables, op: None)
        monkeypatch.setattr(attention, "_check_places", lambda plan, call: None)
        monkeypatch.setattr(kernel_module, "ensure_context", lambda device: None)
        monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: self.stream, raising=False)
        monkeypatch.setattr(KernelSpec, "load", lambda spec, device: EmulatedKernel(spec, self))
        for cache in (_planned_launch, _seq_lens_launch):  # of another emulated GPU
            cache.cache_clear()


class EmulatedKernel(kernel_module.Kernel):
    """Carries a launch out at once."""

    def __init__(self, spec, gpu):
        self.spec, self.gpu, self.device, self.record = spec, gpu, 0, {"name": spec.name}
        self._driver = SimpleNamespace(cuLaunchKernel=self._launch)
        self._smem_limit = 1 << 20
        self._function = spec.stem

    def _launch(self, function, *rest):
        kind = self.spec.params[0]
        (address,) = struct.unpack("P", ctypes.string_at(rest[-2], 8))
        values = iter(kind._packer.unpack(ctypes.string_at(address, kind._packer.size)))
        found = {
            name: [next(values) for _ in range(count)] if count > 1 else next(values)
            for name, (_, count) in kind._fields.items()
        }
        self.gpu.launches.append(function)
        self.gpu.parameters.append(found)
        params = SimpleNamespace(**found)
        KERNELS[function](params, self.spec.config)
        return (0,)


def memory(address, *shape, dtype=torch.int32, strides=None):
    """The tensor that lies at an address."""
    if 0 in shape:
        return torch.empty(shape, dtype=dtype)
    strides = strides or torch.empty(shape, device="meta").stride()
    nbytes = (1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))) * dtype.itemsize
    return torch.frombuffer((ctypes.c_char * nbytes).from_address(address), dtype=dtype).as_strided(shape, strides)


def fingerprint(params):
    """Of the tables that a plan is made for: no other plan's starts fit them."""
    tables = [memory(params.qo_indptr, params.batch + 1), memory(params.kv_lens, params.batch)]
    tables.append(memory(params.kv_starts, params.batch))
    numbers = [params.batch, params.causal, params.window_left, params.lanes, *params.tile]
    return zlib.crc32(repr([numbers, *[x.tolist() for x in tables]]).encode()) >> 1


def lengths(indptr, last_page_len, page_size):
    """Of requests with these pages."""
    pages = indptr[1:] - indptr[:-1]
    return torch.where(pages > 0, (pages - 1) * page_size + last_page_len, 0)


def write_lengths(params, config):
    """What `seq_lens_kernel` computes."""
    indptr, last = memory(params.kv_indptr, params.batch + 1), memory(params.kv_last_page_len, params.batch)
    memory(params.seq_lens, params.batch).copy_(lengths(indptr, last, params.page_size))


def plan_work(params, config):
    """What `schedule_kernel` does to the tables; the starts are a fingerprint."""
    batch = params.batch
    starts, lens = memory(params.kv_starts, batch + 1), memory(params.kv_lens, batch)
    if params.unwritten == 1:
        last = memory(params.last_page_len, batch) if params.last_page_len else params.page_size
        lens.copy_(lengths(starts, last, params.page_size))
    elif params.unwritten == 2:
        starts.copy_(torch.cat([torch.zeros(1), -(-lens // params.page_size).cumsum(0)]))
    blocks = params.groups * params.lanes
    memory(params.unit_indptr, batch + 1, dtype=torch.int64).fill_(-1)
    memory(params.arrivals, blocks).zero_()
    memory(params.starts, blocks, START_INTS).fill_(fingerprint(params))


def attend_requests(params, config):
    """What the attention kernels compute, if the plan that they find is the one for their tables."""
    dim, value_dim = config["kHeadDim"], config["kValueDim"]
    heads = params.num_kv_heads * params.group_size[0]
    assert memory(params.starts, 1).item() == fingerprint(params), "planned for something else"
    assert memory(params.arrivals, 1).item() == 0
    for partial in (params.partial_lse, params.partial_out):  # as the scratch memory that it is
        memory(partial, SM_COUNT, dtype=torch.float32).fill_(torch.nan)
    q = memory(params.q, params.q_rows, heads, dim, dtype=torch.float16, strides=(*params.q_stride, 1))
    dtype = torch.float32 if config["Out"] == "float" else torch.float16
    out = memory(params.out, params.q_rows, heads, value_dim, dtype=dtype, strides=(*params.out_stride, 1))
    lse = (
        memory(params.lse, params.q_rows, heads, dtype=torch.float32, strides=params.lse_stride) if params.lse else None
    )
    qo = memory(params.qo_indptr, params.batch + 1).tolist()
    lens, starts = memory(params.kv_lens, params.batch).tolist(), memory(params.kv_starts, params.batch).tolist()
    for request, (length, start) in enumerate(zip(lens, starts, strict=True)):
        rows = slice(qo[request], qo[request + 1])
        keys, values = (
            rows_of(params, address, strides, start, length, size)
            for address, strides, size in ((params.k, params.k_stride, dim), (params.v, params.v_stride, value_dim))
        )
        o, log_sum = attend(
            q[rows],
            keys,
            values,
            causal=bool(params.causal),
            window_left=params.window_left,
            sm_scale=params.logits_scale,
        )
        out[rows] = o * params.value_scale
        if lse is not None:
            lse[rows] = log_sum


def rows_of(params, address, strides, start, length, dim):
    """Keys or values of a request."""
    page, row, head = strides
    if not params.pages:
        address, shape = address + start * row * 2, (length, params.num_kv_heads, dim)
        return memory(address, *shape, dtype=torch.float16, strides=(row, head, 1))
    size = params.page_size[0]
    pages = memory(params.pages + start * 4, -(-length // size)).tolist()
    shape = size, params.num_kv_heads, dim
    found = [memory(address + at * page * 2, *shape, dtype=torch.float16, strides=(row, head, 1)) for at in pages]
    return torch.cat(found)[:length] if found else torch.empty(0, *shape[1:])


KERNELS = {"seq_lens_kernel": write_lengths, "schedule_kernel": plan_work, "attention_kernel": attend_requests}
