"""Who serves what on GPUs, decided from described problems: no GPU needed."""

import math
from dataclasses import replace

import pytest
import torch

from warploom.comm.all_gather import ALL_GATHER
from warploom.comm.all_reduce import ALL_REDUCE
from warploom.comm.all_to_all import ALL_TO_ALL
from warploom.comm.backends.peer_kernel import launch_shape
from warploom.comm.fusion import ALLREDUCE_FUSION
from warploom.comm.moe_all_to_all import MOE_COMBINE, MOE_DISPATCH
from warploom.comm.peer_workspace import HEADER_BYTES, MAX_BLOCKS, PeerWorkspace
from warploom.comm.problems.all_gather import AllGatherProblem
from warploom.comm.problems.all_reduce import AllReduceProblem
from warploom.comm.problems.all_to_all import AllToAllProblem
from warploom.comm.problems.fusion import AllReduceFusionPattern, FusionProblem
from warploom.comm.problems.moe_all_to_all import MoeCombineProblem, MoeDispatchProblem
from warploom.comm.problems.reduce_scatter import ReduceScatterProblem
from warploom.comm.reduce_scatter import REDUCE_SCATTER
from warploom.comm.topology import Topology
from warploom.core.errors import UnsupportedError

HALF = 16 << 20
ON_GPU = {
    "device_type": "cuda", "arch": 90, "device_name": "a GPU without a table", "size": 8, "transport": "mpi",
    "half_bytes": HALF, "capturing": False, "no_peer_kernels": "", "no_nccl": "",
}  # fmt: skip


def reduction(**change):
    return AllReduceProblem(**{**ON_GPU, "nbytes": 1 << 20, "dtype": torch.bfloat16, "op": "sum", **change})


def chosen(**change):
    return ALL_REDUCE.select(reduction(**change)).name


def reasons(backend, **change):
    return ALL_REDUCE.backends[backend].check(reduction(**change)).reasons


def test_auto_takes_peer_memory_then_nccl():
    assert chosen() == "oneshot"
    assert chosen(nbytes=HALF // 8 + 16) == "twoshot"
    assert chosen(nbytes=HALF) == "nccl"
    assert chosen(op="max") == "nccl"
    assert chosen(dtype=torch.int32) == "nccl"
    assert chosen(no_peer_kernels="two hosts") == "nccl"
    assert chosen(size=1, nbytes=1 << 40, no_nccl="none") == "oneshot"


def test_the_reference_on_a_gpu_is_announced():
    with pytest.warns(UserWarning, match="all_reduce is served by its plain torch reference"):
        assert chosen(no_peer_kernels="two hosts", no_nccl="none") == "reference"


def test_inside_a_capture_nothing_goes_through_the_host():
    assert chosen(capturing=True) == "oneshot"
    with pytest.raises(UnsupportedError, match="reference  no: goes through the host"):
        chosen(capturing=True, no_peer_kernels="two hosts", no_nccl="not made yet")


def test_refusals_say_why():
    assert reasons("oneshot", op="max", dtype=torch.float64) == (
        "computes op='sum', not 'max'",
        "takes float32, float16, bfloat16, not float64",
    )
    (reason,) = reasons("oneshot", nbytes=HALF // 8 + 1)
    assert reason.startswith(f"takes up to {HALF // 8} bytes with this workspace, got {HALF // 8 + 1}")
    assert reasons("twoshot", no_peer_kernels="two hosts") == ("two hosts",)
    assert reasons("oneshot", arch=75) == ("needs sm_80 or later, this is sm_75",)
    assert reasons("nccl", op="avg", dtype=torch.int32) == ("averages floating-point numbers, not int32",)
    assert reasons("mpi") == ("takes CPU tensors",)
    assert reasons("mpi", device_type="cpu", arch=0, transport="gloo") == ("the communicator's transport is gloo",)


def test_peer_memory_comes_before_nccl():
    gather = AllGatherProblem(**{**ON_GPU, "nbytes": 1 << 20})
    scatter = ReduceScatterProblem(**{**ON_GPU, "nbytes": 1 << 20, "dtype": torch.bfloat16})
    for operator, problem in ((ALL_GATHER, gather), (REDUCE_SCATTER, scatter)):
        assert operator.select(problem).name == "oneshot"
        assert operator.select(replace(problem, no_nccl="ranks share a GPU", capturing=True)).name == "oneshot"
        assert operator.select(replace(problem, no_peer_kernels="two hosts")).name == "nccl"
    assert REDUCE_SCATTER.select(replace(scatter, nbytes=1 << 30)).name == "nccl"
    assert not REDUCE_SCATTER.backends["oneshot"].supports(replace(scatter, op="max"))


def test_exchanges_take_any_size():
    gather = AllGatherProblem(**{**ON_GPU, "nbytes": 1 << 30})
    to_all = AllToAllProblem(**{**ON_GPU, "row_bytes": 1 << 20})
    for operator, problem in ((ALL_GATHER, gather), (ALL_TO_ALL, to_all)):
        assert operator.select(problem).name == "exchange"
        assert operator.select(replace(problem, no_nccl="ranks share a GPU", capturing=True)).name == "exchange"
        assert operator.select(replace(problem, no_peer_kernels="two hosts")).name == "nccl"
        refused = operator.backends["exchange"].check(replace(problem, no_peer_kernels="two hosts"))
        assert refused.reasons == ("two hosts",)
    assert not set(AllToAllProblem.__dataclass_fields__) & {"rows", "nbytes", "sent", "received"}


def test_what_was_measured_on_an_h200_decides():
    where = {**ON_GPU, "device_name": "NVIDIA H200", "size": 2}
    rows = {"row_bytes": 7424, "top_k": 8, "num_experts": 256, "payloads": 3, "lands": True}
    fusion = {"dtype": torch.bfloat16, "op": "sum", "hidden": 8192, "group_size": 0}
    fusion["pattern"] = AllReduceFusionPattern.kARResidualRMSNorm
    dispatch = MoeDispatchProblem(**where, **rows, max_tokens=16)
    fused = FusionProblem(**{**where, "half_bytes": 1 << 27}, **fusion, nbytes=1 << 14, tokens=1)
    gather = AllGatherProblem(**where, nbytes=1 << 14)
    assert MOE_DISPATCH.select(dispatch).name == "oneshot"
    assert MOE_DISPATCH.select(replace(dispatch, max_tokens=4096)).name == "direct"
    assert ALLREDUCE_FUSION.select(fused).name == "fused_oneshot"
    assert ALLREDUCE_FUSION.select(replace(fused, tokens=1024, nbytes=1 << 24)).name == "fused_twoshot"
    assert ALL_GATHER.select(gather).name == "oneshot"
    assert ALL_GATHER.select(replace(gather, nbytes=1 << 24)).name == "exchange"


def test_dispatch_and_combine_over_peer_memory():
    where = {**ON_GPU, "row_bytes": 7168 + 224, "max_tokens": 128}
    dispatch = MoeDispatchProblem(**where, top_k=8, num_experts=256, payloads=2, lands=True)
    combine = MoeCombineProblem(**{**where, "row_bytes": 14336}, dtype=torch.bfloat16, lands=True)
    for operator, one in ((MOE_DISPATCH, dispatch), (MOE_COMBINE, combine)):
        assert operator.select(one).name == "direct"
        assert operator.select(replace(one, lands=False)).name == "oneshot"
        assert operator.select(replace(one, no_peer_kernels="two hosts")).name == "nccl"
        assert operator.backends["direct"].supports(replace(one, max_tokens=1 << 20))
        (reason,) = operator.backends["direct"].supports(replace(one, lands=False)).reasons
        assert "symmetric memory" in reason
        (reason,) = operator.backends["oneshot"].supports(replace(one, max_tokens=4096)).reasons
        assert "more workspace_bytes lift that" in reason
        assert not any(operator.backends[name].supports(replace(one, size=1)) for name in ("direct", "oneshot"))
    for name in ("direct", "oneshot"):
        assert not MOE_DISPATCH.backends[name].supports(replace(dispatch, payloads=9))
        assert not MOE_COMBINE.backends[name].supports(replace(combine, row_bytes=20))
        assert not MOE_COMBINE.backends[name].supports(replace(combine, dtype=torch.int32))


@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_the_largest_messages_fit_their_half(size):
    for half in (256, 4096, 1 << 20):
        gathered = ALL_GATHER.backends["oneshot"].largest_message(
            AllGatherProblem(**{**ON_GPU, "nbytes": 1, "size": size, "half_bytes": half})
        )
        assert size * math.ceil(gathered / 8) * 16 <= half
        scattered = REDUCE_SCATTER.backends["oneshot"].largest_message(
            ReduceScatterProblem(**{**ON_GPU, "nbytes": 1, "dtype": torch.float32, "size": size, "half_bytes": half})
        )
        assert size * math.ceil(scattered / size / 16) * 16 <= half
        one_shot = ALL_REDUCE.backends["oneshot"].largest_message(reduction(size=size, half_bytes=half))
        two_shot = ALL_REDUCE.backends["twoshot"].largest_message(reduction(size=size, half_bytes=half))
        assert size * math.ceil(one_shot / 16) * 16 <= half
        chunk = math.ceil(math.ceil(two_shot / 16) / size)
        assert 2 * size * chunk * 16 <= half


def test_halves_of_a_buffer():
    assert PeerWorkspace.half_of(HEADER_BYTES + 1000) == 256
    assert PeerWorkspace.half_of(10) == 0


@pytest.mark.parametrize("packets", [1, 31, 128, 129, 8192, 8193, 32_768, 1_000_000])
def test_launch_shapes(packets):
    blocks, threads = launch_shape(packets)
    assert 1 <= blocks <= MAX_BLOCKS
    assert threads % 32 == 0
    assert 128 <= threads <= 512
    assert blocks * threads >= min(packets, MAX_BLOCKS * 512)


def test_a_fusion_is_served_by_its_all_reduce():
    problem = FusionProblem(
        **ON_GPU, nbytes=1 << 20, dtype=torch.bfloat16, op="sum", tokens=64, hidden=8192, group_size=0,
        pattern=AllReduceFusionPattern.kARResidualRMSNorm,
    )  # fmt: skip
    assert ALLREDUCE_FUSION.select(problem).name == "fused_oneshot"
    assert ALLREDUCE_FUSION.select(replace(problem, hidden=8191, nbytes=64 * 8191 * 2)).name == "oneshot"
    assert ALLREDUCE_FUSION.backends["mpi"].check(problem).reasons == ("takes CPU tensors",)


def test_ranks_choose_alike_whatever_their_tensors_addresses():
    """Nothing that may differ between ranks decides."""
    fields = set(AllReduceProblem.__dataclass_fields__) | set(AllGatherProblem.__dataclass_fields__)
    assert not fields & {"rank", "aligned", "rows", "contiguous", "address"}
    assert ALL_GATHER.select(AllGatherProblem(**ON_GPU, nbytes=8)).name == "oneshot"


def test_tuning_tables_see_what_decides_speed():
    assert reduction().tuning_features() == {
        "device_type": "cuda", "arch": 90, "device_name": "a GPU without a table",
        "size": 8, "nbytes": 1 << 20, "dtype": "bfloat16", "op": "sum",
    }  # fmt: skip


def test_topologies_explain_missing_peer_memory():
    yes = ((True, True), (True, True))
    assert Topology(("a", "a"), ("0", "1"), yes).why_no_peer_memory == ""
    assert Topology(("a", "b"), ("0", "0"), yes).why_no_peer_memory == "peer memory needs one host, the ranks are on 2"
    lame = Topology(("a", "a"), ("0", "1"), ((True, True), (False, True)))
    assert lame.why_no_peer_memory == "rank 1 (GPU 1) can't reach rank 0 (GPU 0)"
    assert "rank 1: 1, reaches the memory of rank -" in str(lame)
    assert Topology(("a", "a"), ("0", "0"), yes).shares_gpus
    assert not Topology(("a", "a"), ("cpu", "cpu"), yes).shares_gpus
