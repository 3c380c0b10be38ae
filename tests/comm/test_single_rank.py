"""Communicators of one rank: every collective is a copy, without MPI, and traceable by torch.compile."""

import pytest
import torch

from warploom.comm import (
    AllReduceFusionPattern,
    Communicator,
    MoeAlltoAll,
    all_gather,
    all_reduce,
    all_to_all,
    allreduce_fusion,
    create_allreduce_fusion_workspace,
    reduce_scatter,
)
from warploom.core.errors import ArgumentError, CommunicationError


@pytest.fixture
def comm():
    with Communicator.single("cpu") as communicator:
        yield communicator


def collectives(comm):
    """Every collective as a function of one tensor ``[n, 4]``."""
    workspace = create_allreduce_fusion_workspace(comm, max_token_num=16, hidden_dim=4, dtype=torch.float32)
    pattern = AllReduceFusionPattern.kARResidualRMSNorm

    def fused(x):
        return allreduce_fusion(x, workspace, pattern, residual_in=torch.zeros_like(x), rms_gamma=torch.ones(4))

    def in_place(x):
        y = x * 1
        all_reduce(y, comm, out=y)
        return y

    def exchange(x):
        moe = MoeAlltoAll(comm, 16, 1, 2)
        (rows,) = moe.dispatch(torch.zeros(x.shape[0], 1, dtype=torch.int32), [x], 16)
        return moe.combine(rows, 16)

    return {
        "all_reduce": lambda x: all_reduce(x, comm),
        "in_place": in_place,
        "all_gather": lambda x: all_gather(x, comm, 1),
        "reduce_scatter": lambda x: reduce_scatter(x, comm, "max"),
        "all_to_all": lambda x: all_to_all(x, comm),
        "all_to_all_uneven": lambda x: all_to_all(x, comm, [x.shape[0]], [x.shape[0]]),
        "fusion": fused,
        "moe": exchange,
    }


@pytest.mark.parametrize("name", collectives(Communicator.single("cpu")))
def test_copies(comm, name):
    x = torch.randn(3, 4)
    expected = torch.nn.functional.rms_norm(x, (4,), eps=1e-6) if name == "fusion" else x
    result = collectives(comm)[name](x)
    torch.testing.assert_close(result, expected)
    assert result.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("name", collectives(Communicator.single("cpu")))
def test_one_graph_for_torch_compile(comm, name):
    function = collectives(comm)[name]

    def program(x):
        return function(x + 1) * 2

    torch.compiler.reset()
    compiled = torch.compile(program, fullgraph=True, backend="aot_eager")
    for rows in (3, 5):
        x = torch.randn(rows, 4)
        torch.testing.assert_close(compiled(x), program(x))


def test_an_exported_program_has_one_node(comm):
    class Layer(torch.nn.Module):
        def forward(self, x):
            return all_reduce(x * 2, comm)

    exported = torch.export.export(Layer(), (torch.randn(2, 3),))
    names = [str(node.target) for node in exported.graph.nodes]
    assert (
        sum("warploom.all_reduce" in name for name in names) + sum("auto_functionalized" in name for name in names) == 1
    )
    x = torch.randn(2, 3)
    assert torch.equal(exported.module()(x), x * 2)


@pytest.mark.parametrize("backend", ["mpi", "reference"])
def test_every_cpu_backend_serves_one_rank(comm, backend):
    x = torch.randn(4, 2).to(torch.bfloat16)
    assert torch.equal(all_reduce(x, comm, backend=backend), x)
    assert torch.equal(all_gather(x, comm, backend=backend), x)
    assert torch.equal(reduce_scatter(x, comm, backend=backend), x)
    assert torch.equal(all_to_all(x, comm, backend=backend), x)


def test_communicators_are_independent(comm):
    with Communicator.single("cpu") as other:
        assert other.handle != comm.handle
    with pytest.raises(CommunicationError, match="closed"):
        all_reduce(torch.ones(1), other)
    assert all_reduce(torch.ones(1), comm).item() == 1


def test_a_symmetric_buffer_of_one_rank(comm):
    buffer = comm.symmetric_buffer(256)
    buffer.tensor(torch.float32, (8, 8)).fill_(3)
    assert buffer.local.view(torch.float32).eq(3).all()
    assert buffer.pointers == (buffer.local.data_ptr(),)


def test_from_mpi_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(CommunicationError, match=r"pip install 'warploom-comm\[mpi\]'"):
        Communicator.from_mpi(device="cpu")


def test_devices():
    with pytest.raises(ArgumentError, match="`device` must be a GPU or the CPU, got meta"):
        Communicator.single("meta")
    assert Communicator.single("cpu").device.type == "cpu"
