"""The kernel of ``philox_kernel.cuh``, shared by the CPU and GPU tests."""

from kernel_specs import spec_of

from warploom.core.jit import ParamStruct, ptr, u64


class PhiloxParams(ParamStruct):
    cpp_name = "warploom::test::PhiloxParams"
    words: ptr
    uniform: ptr
    exponential: ptr
    seed: u64
    offset: u64


PHILOX = spec_of("philox_kernel.cuh", "philox_kernel", PhiloxParams)
