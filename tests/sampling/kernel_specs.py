"""Kernels of the tests: headers of this folder, compiled as those of the packages are."""

from pathlib import Path

from warploom.core.jit import KernelSpec, ParamStruct


def spec_of(header: str, kernel: str, params: type[ParamStruct]) -> KernelSpec:
    return KernelSpec(
        family="test",
        header=header,
        kernel=f"warploom::test::{kernel}",
        config={"kUnused": 0},
        params=(params,),
        include_dirs=(str(Path(__file__).parent),),
    )
