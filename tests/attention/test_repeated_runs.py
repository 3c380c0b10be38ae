"""Runs that are repeated with other tensors: the same results as those of runs that are looked at anew."""

import ctypes
from dataclasses import replace

import pytest
import torch

from warploom.attention import (
    BatchDecodeWithPagedKVCacheWrapper,
    BatchPrefillWithPagedKVCacheWrapper,
    BatchPrefillWithRaggedKVCacheWrapper,
)
from warploom.attention.backends.reference.attention import ReferenceAttention
from warploom.core.settings import settings


def at(address, like):
    """The memory at an address as a tensor like another."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(like.shape, like.stride(), strict=True))
    memory = (ctypes.c_char * (span * like.element_size())).from_address(address)
    return torch.frombuffer(memory, dtype=like.dtype).as_strided(like.shape, like.stride())


@pytest.fixture
def prepared(monkeypatch):
    """A reference backend that prepares calls; counts what was prepared and what was repeated."""
    counts = {"prepared": 0, "repeated": 0}

    def prepare(self, plan, call):
        counts["prepared"] += 1

        def again(plan, q, k, v, out, lse):
            counts["repeated"] += 1
            tensors = {name: at(a, getattr(call, name)) for name, a in zip("qkv", (q, k, v), strict=True)}
            tensors |= {"out": at(out, call.out), "lse": at(lse, call.lse) if lse else None}
            self.run(plan.problem, plan, replace(call, **tensors))

        return again

    monkeypatch.setattr(ReferenceAttention, "prepare", prepare)
    return counts


HEADS = 4, 2, 16  # of queries, of keys; components


def decode(**options):
    wrapper = BatchDecodeWithPagedKVCacheWrapper(backend="reference", **options)
    wrapper.plan(torch.tensor([0, 2, 3]), torch.tensor([2, 0, 1]), torch.tensor([3, 4]), *HEADS, 4, data_type="float32")
    return wrapper


def tensors(seed, pages=3, layout="NHD"):
    generator = torch.Generator().manual_seed(seed)
    shape = (pages, 2, 4, 2, 16) if layout == "NHD" else (pages, 2, 2, 4, 16)
    return torch.randn(2, 4, 16, generator=generator), torch.randn(shape, generator=generator)


@pytest.mark.parametrize("layout", ["NHD", "HND"])
@pytest.mark.parametrize("is_pair", [False, True])
def test_layers_of_a_step(prepared, layout, is_pair):
    wrapper = decode(kv_layout=layout)
    for layer in range(4):
        q, cache = tensors(layer, layout=layout)
        kv = (cache[:, 0], cache[:, 1]) if is_pair else cache
        want = decode(kv_layout=layout).run_return_lse(q, kv)
        got = wrapper.run_return_lse(q, kv)
        assert torch.equal(got[0], want[0])
        assert torch.equal(got[1], want[1])
    assert prepared == {"prepared": 1 + 4, "repeated": 3}


def test_what_a_call_may_change(prepared):
    """Outputs, scales and numbers: each is known by itself."""
    wrapper = decode()
    out, lse = torch.empty(2, 4, 16), torch.empty(2, 4)
    calls = [
        {}, {"return_lse": True}, {"out": out}, {"out": out, "lse": lse, "return_lse": True}, {"q_scale": 0.5},
        {"k_scale": 2, "v_scale": 3.0}, {"window_left": 1},
    ]  # fmt: skip
    for seed in range(2):
        q, cache = tensors(seed)
        for options in calls:
            want = decode().run(q, cache, **{k: v for k, v in options.items() if k not in ("out", "lse")})
            got = wrapper.run(q, cache, **options)
            if not isinstance(want, tuple):
                want, got = (want,), (got,)
            for a, b in zip(got, want, strict=True):
                assert torch.equal(a, b), options
            if "out" in options:
                assert got[0] is out
    assert prepared["repeated"] == len(calls)


def test_what_is_looked_at_anew(prepared):
    wrapper = decode()
    q, cache = tensors(0)
    want = wrapper.run(q, cache)
    others = [
        lambda: wrapper.run(q, cache, k_scale=torch.ones(1)),
        lambda: wrapper.run(q, cache, sinks=torch.full((4,), -100.0)),
        lambda: wrapper.run(q.numpy(), cache),
        lambda: wrapper.run(q.clone().requires_grad_(), cache).detach(),
        lambda: wrapper.run(torch.cat([torch.zeros(1), q.flatten()])[1:].view(2, 4, 16), cache),  # not aligned
        lambda: wrapper.run(q.transpose(0, 1).contiguous().transpose(0, 1), cache),
    ]
    for run in others:
        assert torch.allclose(run(), want, atol=1e-6)
    with settings.override(debug_checks=True):
        wrapper.run(q, cache)
        wrapper.run(q, cache)
    assert prepared["repeated"] == 0
    with pytest.raises(ValueError, match="planned"):
        wrapper.run(q[:1], cache)
    wrapper.run(q, cache)  # settings have been changed
    wrapper.run(q, cache)
    assert prepared["repeated"] == 1


def test_another_plan_forgets(prepared):
    wrapper = decode()
    q, cache = tensors(0)
    wrapper.run(q, cache)
    wrapper.plan(torch.tensor([0, 1, 2]), torch.tensor([2, 0]), torch.tensor([1, 1]), *HEADS, 4, data_type="float32")
    alone = wrapper.run(q, cache)  # one key each: its value
    assert prepared["repeated"] == 0
    assert torch.allclose(alone[0, :2], cache[2, 1, 0, 0].expand(2, 16))


def test_prefills(prepared):
    indptr = torch.tensor([0, 2])
    paged = BatchPrefillWithPagedKVCacheWrapper(backend="reference")
    paged.plan(indptr, torch.tensor([0, 1]), torch.tensor([1]), torch.tensor([4]), *HEADS, 4, q_data_type="float32")
    ragged = BatchPrefillWithRaggedKVCacheWrapper(backend="reference")
    ragged.plan(indptr, torch.tensor([0, 4]), *HEADS, q_data_type="float32")
    for seed in range(3):
        q, cache = tensors(seed)
        assert torch.allclose(paged.run(q, cache), ragged.run(q, cache[1, 0], cache[1, 1]), atol=1e-6)
    assert prepared == {"prepared": 2, "repeated": 4}


def test_traced_runs_are_the_operators(prepared):
    wrapper = decode()
    q, cache = tensors(0)
    want = wrapper.run(q, cache)
    got = torch.compile(lambda q, cache: wrapper.run(q, cache), backend="eager", fullgraph=True)(q, cache)
    assert torch.equal(got, want)
    assert prepared["repeated"] == 0
