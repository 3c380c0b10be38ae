"""Every sampling operator on GPU tensors: as on the CPU, without waiting for the device, inside CUDA graphs."""

import pytest
import torch

from warploom import sampling
from warploom.core.testing import assert_close, random_normal
from warploom.logits_processor import LogitsPipe, MinP, Sample, Softmax, Temperature, TopK, TopP

pytestmark = pytest.mark.gpu

ROWS, VOCAB = 24, 3000
PIPE = LogitsPipe([Temperature(), Softmax(), TopK(), TopP(), MinP(), Sample()])
UNFUSED = LogitsPipe([Temperature(), TopK(), Softmax(), TopP(), MinP(), Sample()], compile=False)
BACKENDS = ("reference", "cuda")
REFERENCE = {"backend": "reference"}


def inputs(device):
    logits = random_normal((ROWS, VOCAB), scale=3.0)
    return {
        "logits": logits.to(device),
        "probs": sampling.softmax(logits).to(device),
        "top_k": torch.arange(1, ROWS + 1, device=device),
        "top_p": torch.linspace(0.2, 1.0, ROWS).to(device),
        "min_p": torch.linspace(0.0, 0.3, ROWS).to(device),
        "temperature": torch.linspace(0.5, 2.0, ROWS).to(device),
        "seeds": torch.arange(ROWS, device=device),
        "indices": torch.arange(ROWS, device=device).flip(0),
        "ids": (torch.arange(ROWS * 3, device=device) % VOCAB).reshape(ROWS, 3),
    }


def speculate(x, **options):
    draft = x["probs"].unsqueeze(1).expand(ROWS, 3, VOCAB)
    target = x["probs"].flip(0).unsqueeze(1).expand(ROWS, 4, VOCAB)
    return sampling.chain_speculative_sampling(draft, x["ids"], target, **options)


def pipe_parameters(x):
    return {name: x[name] for name in ("temperature", "top_k", "top_p", "min_p")}


DRAWS = {
    "logits": lambda x, **o: sampling.sampling_from_logits(x["logits"], temperature=x["temperature"], **o),
    "probs": lambda x, **o: sampling.sampling_from_probs(x["probs"], indices=x["indices"], return_valid=True, **o),
    "top_p": lambda x, **o: sampling.top_p_sampling_from_probs(x["probs"], x["top_p"], **o),
    "top_k": lambda x, **o: sampling.top_k_sampling_from_probs(x["probs"], x["top_k"], **o),
    "min_p": lambda x, **o: sampling.min_p_sampling_from_probs(x["probs"], x["min_p"], **o),
    "both": lambda x, **o: sampling.top_k_top_p_sampling_from_probs(x["probs"], x["top_k"], x["top_p"], **o),
    "both from logits": lambda x, **o: sampling.top_k_top_p_sampling_from_logits(x["logits"], 50, 0.9, **o),
    "speculative": speculate,
    "pipe": lambda x, **o: PIPE(x["logits"], **pipe_parameters(x), **o),
    "unfused pipe": lambda x, **o: UNFUSED(x["logits"], **pipe_parameters(x), **o),
}
OTHERS = {
    "top_p_renorm": lambda x, **o: sampling.top_p_renorm_probs(x["probs"], x["top_p"], **o),
    "top_k_renorm": lambda x, **o: sampling.top_k_renorm_probs(x["probs"], x["top_k"], **o),
    "min_p_renorm": lambda x, **o: sampling.min_p_renorm_probs(x["probs"], x["min_p"], **o),
    "mask": lambda x, **o: sampling.top_k_mask_logits(x["logits"], x["top_k"], **o),
    "top_k": lambda x, **o: sampling.top_k(x["logits"], 50, sorted=True, deterministic=True, **o),
    "torch top_k": lambda x, **o: sampling.top_k(x["logits"], 50, sorted=True, backend="torch"),
}


def flat(result):
    return list(result) if isinstance(result, tuple) else [result]


@pytest.mark.parametrize("name", DRAWS)
def test_draws_the_tokens_of_the_cpu(name):
    for options in ({"seed": 5, "offset": 3}, {"seed": "per row"}):
        results = []
        for device in ("cpu", "cuda"):
            x = inputs(device)
            seed = x["seeds"] if options["seed"] == "per row" else options["seed"]
            results.append(DRAWS[name](x, **{**options, "seed": seed}, **REFERENCE))
        for cpu, gpu in zip(*map(flat, results), strict=True):
            assert torch.equal(cpu, gpu.cpu())


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_others_match_the_cpu(name, backend):
    results = OTHERS[name](inputs("cpu"), **REFERENCE), OTHERS[name](inputs("cuda"), backend=backend)
    for cpu, gpu in zip(*map(flat, results), strict=True):
        assert_close(gpu, cpu)


@pytest.mark.parametrize("name", [*DRAWS, *OTHERS])
@pytest.mark.parametrize("backend", BACKENDS)
def test_waits_for_nothing(name, backend):
    x, call = inputs("cuda"), {**DRAWS, **OTHERS}[name]
    call(x, backend=backend)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        call(x, backend=backend)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_graph_replays_draw_anew_and_advance_the_offset(name, backend):
    x, offset = inputs("cuda"), torch.zeros(1, dtype=torch.int64, device="cuda")
    DRAWS[name](x, seed=1, backend=backend)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        drawn = flat(DRAWS[name](x, seed=1, offset=offset, backend=backend))[0]
    offset.zero_()
    for step in range(3):
        graph.replay()
        assert torch.equal(drawn, flat(DRAWS[name](x, seed=1, offset=step, **REFERENCE))[0])
        assert offset.tolist() == [step + 1]


def test_graph_replays_without_a_seed_draw_anew():
    x = inputs("cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        drawn = sampling.sampling_from_logits(x["logits"], **REFERENCE)
    seen = set()
    for _ in range(4):
        graph.replay()
        seen.add(tuple(drawn.tolist()))
    assert len(seen) == 4


def test_generators_of_both_devices():
    logits = inputs("cuda")["logits"]
    for device in ("cuda", "cpu"):
        drawn = []
        for _ in range(2):
            generator = torch.Generator(device).manual_seed(4)
            drawn.append(sampling.sampling_from_logits(logits, generator=generator, **REFERENCE))
        assert torch.equal(*drawn)
