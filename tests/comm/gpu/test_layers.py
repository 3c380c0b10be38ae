"""Fused all-reduces between products: kernels that start while the one before ends."""

from functools import partial

import pytest
import torch
from comm_oracle import message

from warploom.comm import AllReduceFusionPattern, allreduce_fusion, create_allreduce_fusion_workspace

gemm = pytest.importorskip("warploom.gemm")
pytestmark = pytest.mark.multigpu(count=1)

BF16, HIDDEN, INNER, LAYERS = torch.bfloat16, 2048, 1536, 6


class Layers:
    """``x = norm(sum := all_reduce(x @ up @ down) + sum)`` several times, in tensors that all layers share."""

    def __init__(self, comm, tokens, backend):
        generator = torch.Generator(comm.device).manual_seed(comm.rank)

        def draw(*shape):
            return (torch.randn(shape, generator=generator, device=comm.device) * shape[0] ** -0.5).to(BF16)

        self.weights = [(draw(HIDDEN, INNER), draw(INNER, HIDDEN)) for _ in range(LAYERS)]
        self.gamma = message(99, (HIDDEN,), BF16).to(comm.device)
        self.x, self.part, self.sum = (torch.empty(tokens, HIDDEN, dtype=BF16, device=comm.device) for _ in range(3))
        self.between = torch.empty(tokens, INNER, dtype=BF16, device=comm.device)
        self.fuse = partial(
            allreduce_fusion,
            workspace=create_allreduce_fusion_workspace(
                comm, max_token_num=tokens, hidden_dim=HIDDEN, dtype=BF16, backend=backend
            ),
            pattern=AllReduceFusionPattern.kARResidualRMSNorm,
            rms_gamma=self.gamma,
        )

    def run(self, values, after_each=lambda: None):
        self.x.copy_(values)
        self.sum.copy_(values)
        for up, down in self.weights:
            gemm.mm_bf16(self.x, up, out=self.between)
            after_each()
            gemm.mm_bf16(self.between, down, out=self.part)
            after_each()
            self.fuse(self.part, residual_in=self.sum, residual_out=self.sum, norm_out=self.x)
            after_each()


@pytest.mark.parametrize("backend", ["fused_oneshot", "fused_twoshot", "auto"])
@pytest.mark.parametrize("tokens", [1, 17, 128])
def test_no_kernel_reads_what_is_not_written(gpus, tokens, backend):
    """The same bits as with the device idle after every kernel, eagerly and in a graph, for other tokens each time."""
    layers = Layers(gpus, tokens, backend)
    rounds = [message(7, (tokens, HIDDEN), BF16, seed).to(gpus.device) for seed in range(8)]
    expected = []
    for values in rounds:
        layers.run(values, torch.cuda.synchronize)
        expected.append(layers.x.clone())
    assert not torch.equal(expected[0], expected[1])
    for values, wanted in zip(rounds, expected, strict=True):
        layers.run(values)
        assert torch.equal(layers.x, wanted)
    given = torch.empty_like(layers.x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        layers.run(given)
    for values, wanted in zip(rounds, expected, strict=True):
        given.copy_(values)
        graph.replay()
        assert torch.equal(layers.x, wanted)
