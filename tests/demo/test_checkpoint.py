"""The weights file: exact up to its rounding, small, free of pickle, and clear when it is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint import CheckpointError, load_checkpoint, quantise_rows, save_checkpoint
from model import ModelConfig, Transformer


def test_rows_are_off_by_half_a_step_at_most() -> None:
    weight = torch.randn(5, 3, 64, generator=torch.Generator().manual_seed(0))
    weight[2, 1] = 0
    codes, scale = quantise_rows(weight)
    assert codes.dtype == np.int8
    assert scale.shape == (5, 3)
    step = torch.from_numpy(scale.astype(np.float32))[..., None]
    error = (torch.from_numpy(codes.astype(np.float32)) * step - weight).abs()
    # The scale itself is rounded to float16, which may clip a row's largest value by 127 * 2**-11 steps.
    assert (error <= step * (0.5 + 127 * 2**-11)).all()


def test_what_is_saved_comes_back(tmp_path: Path, tiny: tuple[ModelConfig, dict[str, torch.Tensor]]) -> None:
    config, state = tiny
    path = tmp_path / "weights.npz"
    size = save_checkpoint(path, config, state)
    loaded_config, loaded = load_checkpoint(path)
    assert size == path.stat().st_size
    assert loaded_config == config
    assert loaded.keys() == Transformer(config).state_dict().keys()
    for name, weight in loaded.items():
        assert torch.equal(weight, weight.bfloat16().float()), name
        assert (weight - state[name]).norm() <= 0.01 * state[name].norm(), name


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"train\.py --out"):
        load_checkpoint(tmp_path / "none.npz")


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 truncated"])
def test_a_damaged_file_says_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "weights.npz"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a weights file"):
        load_checkpoint(path)


def test_a_foreign_archive_and_pickles_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.npz"
    np.savez(path, a=np.zeros(3))
    with pytest.raises(CheckpointError, match="not a weights file"):
        load_checkpoint(path)
    np.savez(path, config=np.array([{"model": {}}], dtype=object))
    with pytest.raises(CheckpointError, match="allow_pickle"):
        load_checkpoint(path)
