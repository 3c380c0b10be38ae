"""Every operator inside ``torch.compile(fullgraph=True)``, and some in ``torch.export``."""

import pytest
import torch

from warploom import sampling
from warploom.core.testing import random_normal
from warploom.logits_processor import LogitsPipe, Sample, Softmax, Temperature, TopK, TopP

PIPE = LogitsPipe([Temperature(), Softmax(), TopK(), TopP(), Sample()])
UNFUSED = LogitsPipe([Temperature(), TopK(), Softmax(), TopP(), Sample()], compile=False)


def filters(rows):
    return torch.arange(3, rows + 3), torch.linspace(0.3, 1.0, rows)


PROGRAMS = {
    "softmax": lambda x: sampling.softmax(x, 0.5),
    "softmax per row": lambda x: sampling.softmax(x, x.sum(-1).abs()),
    "from logits": lambda x: sampling.sampling_from_logits(x, seed=1, return_valid=True),
    "from probs": lambda x: sampling.sampling_from_probs(x.abs(), seed=1),
    "top p": lambda x: sampling.top_p_sampling_from_probs(x.abs(), filters(x.shape[0])[1], seed=1),
    "min p": lambda x: sampling.min_p_sampling_from_logits(x, 0.2, temperature=2.0, seed=1),
    "both": lambda x: sampling.top_k_top_p_sampling_from_logits(x, *filters(x.shape[0]), seed=1),
    "seeds": lambda x: sampling.sampling_from_logits(x, seed=torch.arange(2), indices=torch.arange(2)),
    "renorm": lambda x: sampling.top_p_renorm_probs(x.abs(), 0.5),
    "mask": lambda x: sampling.top_k_mask_logits(x, 5),
    "top k": lambda x: sampling.top_k(x, 5, sorted=True, deterministic=True),
    "speculative": lambda x: sampling.chain_speculative_sampling(
        x.abs().unsqueeze(1), torch.ones(x.shape[0], 1, dtype=torch.int32), x.abs().unsqueeze(1).repeat(1, 2, 1), seed=1
    ),
    "pipe": lambda x: PIPE(x, temperature=0.7, top_k=10, top_p=filters(x.shape[0])[1], seed=1),
    "unfused pipe": lambda x: UNFUSED(x, temperature=0.7, top_k=10, top_p=0.9, seed=1),
}


def flat(result):
    return [x.float() for x in (result if isinstance(result, tuple) else (result,))]


@pytest.mark.parametrize("name", PROGRAMS)
def test_compiles_in_one_graph_for_any_number_of_rows(name):
    function = PROGRAMS[name]

    def program(x):
        return [y * 2 for y in flat(function(x * 1.0))]

    torch.compiler.reset()
    compiled = torch.compile(program, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (4, 6):
        x = random_normal((rows, 32), seed=rows)
        for got, want in zip(compiled(x), program(x), strict=True):
            assert torch.equal(got, want)


def test_offsets_advance_inside_a_compiled_graph():
    offset = torch.zeros(1, dtype=torch.int64)
    logits = random_normal((8, 100))

    def program(x, offset):
        return sampling.sampling_from_logits(x, seed=1, offset=offset)

    torch.compiler.reset()
    compiled = torch.compile(program, fullgraph=True, backend="aot_eager")
    for step in range(3):
        assert torch.equal(compiled(logits, offset), sampling.sampling_from_logits(logits, seed=1, offset=step))
        assert offset.tolist() == [step + 1]


def test_without_a_seed_a_compiled_graph_draws_anew():
    logits = random_normal((64, 100))
    torch.compiler.reset()
    compiled = torch.compile(sampling.sampling_from_logits, fullgraph=True, backend="aot_eager")
    assert not torch.equal(compiled(logits), compiled(logits))


@pytest.mark.parametrize("name", ["softmax", "both", "renorm", "pipe"])
def test_exports(name):
    class Module(torch.nn.Module):
        def forward(self, x):
            return flat(PROGRAMS[name](x))

    x = random_normal((4, 32))
    exported = torch.export.export(Module(), (x,))
    assert any("warploom" in str(node.target) for node in exported.graph.nodes)
    assert torch.equal(exported.module()(x)[0], Module()(x)[0])
