// wgmma.cuh with operands of type e4m3, both of which lie along what is summed over.
//
// Of a 64 x 32 operand A, lane l of a warp holds rows l / 4 and l / 4 + 8, columns 4 (l % 4) to + 3 and 16 more, four neighbours a
// register.
#pragma once

#include <cuda_fp8.h>

#include "warploom/wgmma.cuh"

namespace warploom {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <>
struct WgmmaTypeOf<__nv_fp8_e4m3> {
  static constexpr WgmmaType kType = WgmmaType::kE4m3;
};

#endif

}  // namespace warploom
