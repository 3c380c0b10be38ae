"""The kernel of ``philox_kernel.cuh``, shared by the CPU and GPU tests."""

from pathlib import Path

from warploom.core.jit import KernelSpec, ParamStruct, ptr, u64


class PhiloxParams(ParamStruct):
    cpp_name = "warploom::test::PhiloxParams"
    words: ptr
    uniform: ptr
    exponential: ptr
    seed: u64
    offset: u64


PHILOX = KernelSpec(
    family="test",
    header="philox_kernel.cuh",
    kernel="warploom::test::philox_kernel",
    config={"kUnused": 0},
    params=(PhiloxParams,),
    include_dirs=(str(Path(__file__).parent),),
)
