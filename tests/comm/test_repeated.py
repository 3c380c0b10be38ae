"""Calls on GPUs that repeat an earlier one: what is skipped, what is not, and what they launch. No GPU needed."""

import gc
import random
import sys
import weakref

import pytest
import torch
from emulated_ranks import EmulatedRanks, as_gpu, on_gpu, ways_to_spoil
from torch.utils._python_dispatch import TorchDispatchMode

from warploom.comm import (
    AllReduceFusionPattern,
    Communicator,
    all_gather,
    all_reduce,
    allreduce_fusion,
    create_allreduce_fusion_workspace,
    reduce_scatter,
)
from warploom.comm.all_gather import ALL_GATHER
from warploom.comm.all_reduce import ALL_REDUCE
from warploom.comm.backends.nccl.all_gather import NcclAllGather
from warploom.comm.backends.nccl.all_reduce import NcclAllReduce
from warploom.core.errors import ArgumentError, CommunicationError
from warploom.core.settings import settings

MODULES = ("all_reduce", "all_gather", "reduce_scatter", "fusion")
GROUPS = AllReduceFusionPattern.kARResidualRMSNormOutGroupFP8Quant
NORM = AllReduceFusionPattern.kARResidualRMSNorm


@pytest.fixture
def ranks(monkeypatch):
    emulated = EmulatedRanks(monkeypatch)
    emulated.looked_at = []  # the calls that went through torch's dispatcher, as unknown ones do
    for name in MODULES:
        module = sys.modules[f"warploom.comm.{name}"]

        def look(*arguments, name=name, run=module._run):
            emulated.looked_at.append(name)
            return run(*arguments)

        monkeypatch.setattr(module, "_run", look)
    return emulated


@pytest.fixture
def comm(ranks):
    return ranks.communicator()


def workspace_of(comm, **change):
    limits = {"max_token_num": 8, "hidden_dim": 256, "dtype": torch.bfloat16, "backend": "fused_oneshot", **change}
    return create_allreduce_fusion_workspace(comm, **limits)


def fuse(workspace, pattern=GROUPS, tokens=4, **change):
    """A fused all-reduce of new tensors, which are kept alive by the result."""
    like_input = ("residual_in", "residual_out", "norm_out")
    tensors = {name: on_gpu(tokens, 256) for name in like_input} | {"rms_gamma": on_gpu(256)}
    if pattern == GROUPS:
        tensors |= {
            "quant_out": on_gpu(tokens, 256, dtype=torch.float8_e4m3fn),
            "scale_out": on_gpu(tokens, 2, dtype=torch.float32),
        }
    tensors = {"input": on_gpu(tokens, 256), **tensors, **change}
    return allreduce_fusion(workspace=workspace, pattern=pattern, **tensors), tensors


def test_known_calls_launch_the_same_at_other_addresses(ranks, comm):
    cases = {
        "all_reduce": lambda x, out: all_reduce(x, comm, out=out),
        "all_gather": lambda x, out: all_gather(x, comm, out=out, backend="oneshot"),
        "reduce_scatter": lambda x, out: reduce_scatter(x, comm, out=out, backend="oneshot"),
    }
    rows = {"all_reduce": 8, "all_gather": 16, "reduce_scatter": 4}
    for name, call in cases.items():
        for number in range(3):
            x, out = on_gpu(8, 40), on_gpu(rows[name], 40)
            assert call(x, out) is out
            kernel, shape, stream, fields = ranks.launches[-1]
            if number == 0:
                expected = kernel, shape, {**fields, "input": 0, "output": 0}
            assert (fields["input"], fields["output"]) == (x.data_ptr(), out.data_ptr())
            assert (kernel, shape, {**fields, "input": 0, "output": 0}) == expected
            assert stream == 7
        assert ranks.looked_at == [name]
        ranks.looked_at.clear()
    assert comm.calls == len(ranks.launches) == 9
    assert comm.transport.activity == "reduce_scatter, call 9"


def test_known_fusions_launch_the_same_at_other_addresses(ranks, comm):
    workspace = workspace_of(comm)
    names = {"input": "input", "residual": "residual_in", "residual_out": "residual_out", "gamma": "rms_gamma",
             "norm_out": "norm_out", "codes": "quant_out", "scales": "scale_out"}  # fmt: skip
    for number in range(3):
        result, tensors = fuse(workspace)
        kernel, shape, _, fields = ranks.launches[-1]
        if number == 0:
            expected = kernel, shape, fields["tokens"], fields["eps"], fields["gamma_bias"]
        assert result is tensors["quant_out"]
        assert {field: fields[field] for field in names} == {f: tensors[n].data_ptr() for f, n in names.items()}
        assert fields["output"] == 0
        assert (kernel, shape, fields["tokens"], fields["eps"], fields["gamma_bias"]) == expected
    assert ranks.looked_at == ["fusion"]


@pytest.mark.parametrize(
    "change",
    [
        {"x": lambda: on_gpu(4, 40)},
        {"x": lambda: on_gpu(8, 40, dtype=torch.float16)},
        {"x": lambda: as_gpu(on_gpu(40, 8).t())},
        {"out": lambda: on_gpu(8, 40)},
        {"backend": lambda: "twoshot"},
        {"x": lambda: on_gpu(8, 40).requires_grad_()},
    ],
)
def test_other_calls_are_looked_at(ranks, comm, change):
    all_reduce(on_gpu(8, 40), comm)
    all_reduce(**{"x": on_gpu(8, 40), "comm": comm, **{name: make() for name, make in change.items()}})
    assert ranks.looked_at == ["all_reduce"] * 2
    first, second = (launch for launch in ranks.launches)
    assert first[:2] != second[:2] or first[3] != second[3]
    all_reduce(on_gpu(8, 40), comm)
    assert ranks.looked_at == ["all_reduce"] * 2


@pytest.mark.parametrize(
    "change",
    [
        {"rms_eps": 1e-5},
        {"weight_bias": 1.0},
        {"block_quant_group_size": 256, "scale_out": (4, 1)},
        {"backend": "fused_twoshot"},
        {"norm_out": None},
        {"tokens": 3},
    ],
)
def test_other_fusions_are_looked_at(ranks, comm, change):
    if "scale_out" in change:
        change["scale_out"] = on_gpu(*change["scale_out"], dtype=torch.float32)
    workspace = workspace_of(comm)
    fuse(workspace)
    fuse(workspace, **change)
    assert ranks.looked_at == ["fusion"] * 2
    with pytest.raises(ArgumentError, match="at most"):
        fuse(workspace_of(comm, max_token_num=2))


def test_wrong_arguments_raise_also_beside_known_calls(ranks, comm):
    x = on_gpu(8, 40)
    all_reduce(x, comm, out=x)
    for wrong in ({"op": "product"}, {"out": on_gpu(8, 41)}, {"backend": "onshot"}, {"x": torch.zeros(8, 40)}):
        for _ in range(2):
            with pytest.raises(ArgumentError):
                all_reduce(**{"x": x, "comm": comm, "out": x, **wrong})
    workspace = workspace_of(comm)
    fuse(workspace)
    for wrong in ({"pattern": 3}, {"pattern": [1]}, {"residual_in": None}, {"scale_out": None}):
        with pytest.raises(ArgumentError):
            fuse(workspace, **{"pattern": GROUPS, **wrong})


def test_outputs_that_are_not_given_are_new_each_time(ranks, comm):
    results = [all_reduce(on_gpu(8, 40), comm) for _ in range(3)]
    gathered = [all_gather(on_gpu(8, 40), comm, 1, backend="oneshot") for _ in range(2)]
    parts = [reduce_scatter(on_gpu(8, 40), comm, backend="oneshot") for _ in range(2)]
    fused = [fuse(workspace_of(comm), NORM, norm_out=None)[0] for _ in range(2)]
    for group, shape in ((results, (8, 40)), (gathered, (8, 80)), (parts, (4, 40)), (fused, (4, 256))):
        assert {tuple(one.shape) for one in group} == {shape}
        assert len({one.data_ptr() for one in group}) == len(group)
        assert all(one.dtype == torch.bfloat16 for one in group)
    assert ranks.launches[2][3]["output"] == results[2].data_ptr()
    assert ranks.launches[-1][3]["norm_out"] == fused[-1].data_ptr()
    assert ranks.looked_at == list(MODULES)


def test_strided_tensors_go_through_contiguous_memory(ranks, comm):
    for _ in range(2):
        x, out = as_gpu(on_gpu(8, 80)[:, ::2]), as_gpu(on_gpu(8, 80)[:, ::2])
        x.fill_(3)
        assert all_reduce(x, comm, out=out) is out
        fields = ranks.launches[-1][3]
        assert fields["input"] != x.data_ptr()
        assert fields["output"] != out.data_ptr()
    assert ranks.looked_at == ["all_reduce"]


def test_known_fusions_of_tensors_that_the_kernel_does_not_take(ranks, comm, monkeypatch):
    workspace = workspace_of(comm)
    fuse(workspace, NORM)
    odd = as_gpu(on_gpu(4 * 256 + 1)[1:].view(4, 256))
    fuse(workspace, NORM, residual_in=odd)
    assert ranks.looked_at == ["fusion"]
    known, other = ranks.launches
    assert known[0] == other[0], "other ranks may have tensors that the kernel takes: all must launch the same"
    assert other[3]["residual"] not in (0, odd.data_ptr())
    assert other[3]["residual"] % 16 == 0


def test_known_fusions_leave_out_what_their_pattern_has_no_use_for(ranks, comm):
    workspace = workspace_of(comm)
    for scale in (on_gpu(1, 1, 1, dtype=torch.float32), 0.5):
        ranks.looked_at.clear()
        for _ in range(2):
            spare = on_gpu(4, 256, dtype=torch.float8_e4m3fn)
            result, tensors = fuse(workspace, NORM, quant_out=spare, scale_factor=scale)
            assert result is tensors["norm_out"]
            assert ranks.launches[-1][3]["codes"] == ranks.launches[-1][3]["scales"] == 0
            pattern = AllReduceFusionPattern.kARResidualRMSNormFP8Quant
            result, tensors = fuse(workspace, pattern, quant_out=spare, scale_factor=scale)
            assert result is spare
            assert ranks.launches[-1][3]["scales"] not in (0, spare.data_ptr())
        assert ranks.looked_at == ["fusion"] * 2
    with pytest.raises(ArgumentError, match="one number"):
        fuse(workspace, pattern, quant_out=spare, scale_factor=on_gpu(2, dtype=torch.float32))


def test_another_stream_waits_for_the_last_one(ranks, comm):
    x = on_gpu(8, 40)
    for stream in (7, 7, 8, 8, 7):
        ranks.stream = stream
        all_reduce(x, comm, out=x)
    assert [stream for _, _, stream, _ in ranks.launches] == [7, 7, 8, 8, 7]
    assert ranks.events == ["8 after end of 7", "7 after end of 8"]
    assert ranks.looked_at == ["all_reduce"]


def test_closed_and_failed_communicators_refuse_known_calls(ranks):
    for spoil, text in ways_to_spoil(operation=1):  # an all-reduce
        comm = ranks.communicator()
        workspace = workspace_of(comm)
        x = on_gpu(8, 40)
        all_reduce(x, comm, out=x)
        fuse(workspace)
        launched = len(ranks.launches)
        spoil(comm)
        for use in (lambda x=x, comm=comm: all_reduce(x, comm, out=x), lambda workspace=workspace: fuse(workspace)):
            with pytest.raises(CommunicationError, match=text):
                use()
        assert len(ranks.launches) == launched


def test_communicators_know_their_own_calls(ranks, comm):
    all_reduce(on_gpu(8, 40), comm)
    all_reduce(on_gpu(8, 40), ranks.communicator())
    assert ranks.looked_at == ["all_reduce"] * 2


def test_debug_checks_look_at_every_call(ranks, comm, monkeypatch):
    agreed = []
    monkeypatch.setattr(comm.transport, "exchange_objects", lambda terms: agreed.append(terms) or [terms] * 2)
    x = on_gpu(8, 40)
    all_reduce(x, comm, out=x)
    with settings.override(debug_checks=True):
        for _ in range(2):
            all_reduce(x, comm, out=x)
    assert len(agreed) == 2
    monkeypatch.setenv("WARPLOOM_DEBUG_CHECKS", "1")
    for _ in range(2):
        all_reduce(x, comm, out=x)
    assert len(agreed) == 4


def test_the_setting_for_backends_is_followed(ranks, comm, monkeypatch):
    x = on_gpu(8, 40)
    served = []
    for value in ("", "all_reduce=twoshot", "", "twoshot", "oneshot"):
        monkeypatch.setenv("WARPLOOM_BACKEND", value)
        for _ in range(2):
            all_reduce(x, comm, out=x)
            served.append(ALL_REDUCE.last.name)
    assert served[::2] == served[1::2] == ["oneshot", "twoshot", "oneshot", "twoshot", "oneshot"]


def test_forgotten_calls_are_looked_at(ranks, comm):
    x = on_gpu(8, 40)
    for _ in range(2):
        all_reduce(x, comm, out=x)
        ALL_REDUCE.forget()
    assert ranks.looked_at == ["all_reduce"] * 2


def test_another_current_gpu_needs_a_guard(ranks, comm, monkeypatch):
    x = on_gpu(8, 40)
    all_reduce(x, comm, out=x)
    guarded = []

    class Guard:
        def __init__(self, device):
            guarded.append(device)

        __enter__ = __exit__ = lambda self, *error: None

    monkeypatch.setattr(torch.cuda, "device", Guard)
    ranks.current = 1
    all_reduce(x, comm, out=x)
    assert guarded
    assert ranks.looked_at == ["all_reduce"] * 2


def test_gradients_only_matter_where_they_are_recorded(ranks, comm):
    x = on_gpu(8, 40).requires_grad_()
    with torch.no_grad():
        for _ in range(2):
            all_reduce(x, comm)
    assert ranks.looked_at == ["all_reduce"]
    with torch.inference_mode():
        all_reduce(x, comm)
    assert ranks.looked_at == ["all_reduce"]


def test_who_watches_sees_the_operator(ranks, comm):
    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    seen = []
    x = on_gpu(8, 40)
    for _ in range(2):
        all_reduce(x, comm, out=x)
    with Watch():
        all_reduce(x, comm, out=x)
    assert "warploom.all_reduce.default" in seen


def test_nothing_of_a_call_is_kept_alive(ranks):
    comm = ranks.communicator()
    tensors = [on_gpu(8, 40), as_gpu(on_gpu(8, 80)[:, ::2])]
    for x in tensors:
        for _ in range(2):
            all_reduce(x, comm, out=x)
            all_gather(x, comm, backend="oneshot")
    gone = [weakref.ref(one) for one in (*tensors, comm)]
    del x, tensors, comm
    gc.collect()
    assert [one() for one in gone] == [None] * 3


def test_cpu_tensors_are_always_agreed_on():
    with Communicator.single("cpu") as comm:
        for _ in range(2):
            all_reduce(torch.ones(3), comm)
        assert not comm.repeated


def test_ranks_choose_alike_whatever_they_know(ranks, monkeypatch):
    """One rank knows its calls, one never does, one sometimes forgets: through all changes of state they launch alike."""
    served = []
    for backend in (NcclAllReduce, NcclAllGather):
        monkeypatch.setattr(backend, "run", lambda self, problem, comm, out, x: served.append("nccl"))
    chance = random.Random(3)
    comms = [ranks.communicator() for _ in range(3)]
    x, large = on_gpu(8, 40), on_gpu(1 << 17)
    chosen = set()
    for step in range(300):
        if chance.random() < 0.2:
            ranks.capturing = not ranks.capturing
        if chance.random() < 0.1:
            monkeypatch.setenv("WARPLOOM_BACKEND", chance.choice(["", "twoshot", "all_gather=oneshot"]))
        if step == 150:
            ranks.capturing = False
            for comm in comms:
                comm.nccl()
        comms[1].repeated.clear()
        if chance.random() < 0.2:
            comms[2].repeated.clear()
        gatherer = "oneshot" if step < 150 else "nccl"
        call = chance.choice(
            [
                lambda comm: (all_reduce(x, comm, out=x), ALL_REDUCE.last.name),
                lambda comm: (all_gather(x, comm), ALL_GATHER.last.name),
                lambda comm: (all_reduce(x, comm, out=x, backend="twoshot"), ALL_REDUCE.last.name),
                lambda comm: (all_reduce(large, comm), ALL_REDUCE.last.name),
                lambda comm, gatherer=gatherer: (all_gather(x, comm, backend=gatherer), ALL_GATHER.last.name),
            ]
        )
        names = {call(comm)[1] for comm in comms}
        assert len(names) == 1, f"step {step}: {names}"
        chosen |= names
    assert chosen == {"oneshot", "twoshot", "nccl"}
    assert len(comms[0].repeated) > 4
    assert len({comm.calls for comm in comms}) == 1
