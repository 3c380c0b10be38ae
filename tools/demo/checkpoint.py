"""Weights on disk: one `.npz` of int8 matrices with a float16 scale per row, read without pickle."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from model import ModelConfig
from torch import Tensor

SCALE_SUFFIX = ":scale"
CONFIG_KEY = "config"
DEFAULT_PATH = Path(__file__).with_name("weights.npz")

# Smaller tensors (norms, routers) stay float16: they weigh nothing and routing decisions hang on them.
SMALLEST_QUANTISED = 4096


class CheckpointError(RuntimeError):
    """The weights file is missing or is not one that `save_checkpoint` wrote."""


def quantise_rows(weight: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Symmetric int8 with one float16 scale per row of the last dimension: `weight ~ codes * scale[..., None]`."""
    array = weight.detach().float().cpu().numpy()
    scale = (np.abs(array).max(-1) / 127).astype(np.float16)
    step = np.where(scale > 0, scale, 1).astype(np.float32)[..., None]
    codes = np.clip(np.rint(array / step), -127, 127).astype(np.int8)
    return codes, scale


def save_checkpoint(path: str | Path, config: ModelConfig, state: dict[str, Tensor]) -> int:
    """Write `state` to `path` and return the file's size in bytes."""
    header = json.dumps({"model": config.as_dict()}).encode()
    arrays = {CONFIG_KEY: np.frombuffer(header, dtype=np.uint8)}
    for name, weight in state.items():
        if weight.numel() >= SMALLEST_QUANTISED:
            arrays[name], arrays[name + SCALE_SUFFIX] = quantise_rows(weight)
        else:
            arrays[name] = weight.detach().float().cpu().numpy().astype(np.float16)
    with open(path, "wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    return Path(path).stat().st_size


def load_checkpoint(path: str | Path = DEFAULT_PATH) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Read what `save_checkpoint` wrote.

    Every weight comes back rounded to bfloat16 (held in float32): the engine's matrices and the check's are then the
    same numbers, and a comparison measures arithmetic alone.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"no weights at {path}. Train them with: python {Path(__file__).with_name('train.py')} --out {path}"
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        config = ModelConfig(**json.loads(arrays.pop(CONFIG_KEY).tobytes())["model"])
    except Exception as error:  # a truncated zip, a foreign npz and a bad header fail in many ways; all mean the same
        raise CheckpointError(f"{path} is not a weights file of this demo ({error}). Train it again.") from error
    state = {}
    for name, array in arrays.items():
        if name.endswith(SCALE_SUFFIX):
            continue
        weight = torch.from_numpy(array.astype(np.float32))
        if name + SCALE_SUFFIX in arrays:
            weight *= torch.from_numpy(arrays[name + SCALE_SUFFIX].astype(np.float32))[..., None]
        state[name] = weight.to(torch.bfloat16).float()
    return config, state
