"""Small batches that reach every part of a kernel, for compute-sanitizer: `python small_steps.py cuda`."""

import sys

import torch
from paged_steps import Step

# Requests: shares of one item, rows of one warpgroup and of both, nothing to do, more keys than a tile by one.
LENS = (([1] * 4, [1, 64, 1500, 129]), ([70, 1, 0, 16, 130], [300, 20, 5, 16, 130]))
OPTIONS = ({"causal": True}, {"window_left": 40, "logits_soft_cap": 20.0})
# Keys that fill tiles, which TMA copies. Of keys that come by cp.async, racecheck reports what lanes read before one of them
# arrives at an mbarrier for its warp.
WHOLE_TILES = (([1] * 4, [128, 256, 1536, 128]), ([70, 1, 0, 16, 130], [384, 128, 128, 128, 256]))
CUDA = (
    {"dim": 128},
    {"dim": 40, "page_size": 3},
    {"dim": 128, "dtype": torch.bfloat16, "dtype_kv": torch.float8_e4m3fn},
    {"dim": 64, "pos_encoding_mode": "ROPE_LLAMA"},
)
HOPPER = (
    {"dim": 128},
    {"dim": 64, "page_size": 1, "heads": (6, 2)},
    {"dim": 192, "dim_v": 128, "page_size": 8},
    {"dim": 96, "dtype": torch.bfloat16},
    {"dim": 128, "dtype": torch.float8_e4m3fn},
)
DECODES = (([1] * 4, [1, 64, 1500, 129]), ([2] * 17, [300, 0, 5000, 16] * 4 + [40]))
WHOLE_DECODES = (([1] * 4, [128, 256, 1536, 128]), ([2] * 17, [384, 128, 5120, 256] * 4 + [128]))
DECODE = (
    {"dim": 128},
    {"dim": 64, "page_size": 64, "heads": (6, 2)},
    {"dim": 256},
    {"dim": 128, "dtype": torch.bfloat16, "dtype_kv": torch.float8_e4m3fn},
)
# Backend, requests and shapes, by the name that the sanitizer's tests give.
STEPS = {
    "cuda": ("cuda", LENS, CUDA),
    "hopper": ("hopper", LENS, HOPPER),
    "hopper_decode": ("hopper_decode", DECODES, DECODE),
    "hopper_decode, whole tiles": ("hopper_decode", WHOLE_DECODES, DECODE),
    "hopper, whole tiles": ("hopper", WHOLE_TILES, tuple({**case, "page_size": 16} for case in HOPPER)),
}


def main(steps):
    backend, requests, cases = STEPS[steps]
    for case in cases:
        plan = {name: value for name, value in case.items() if name == "pos_encoding_mode"}
        shape = {name: value for name, value in case.items() if name not in plan}
        for lens in requests:
            for options in OPTIONS:
                step = Step(*lens, **shape)
                if backend == "hopper_decode":
                    step.plan_decode(backend, **options, **plan).run(step.q, step.cache)
                else:
                    step.run(backend, **options, **plan)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main(sys.argv[1])
