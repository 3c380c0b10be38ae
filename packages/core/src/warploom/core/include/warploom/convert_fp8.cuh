// fp32 <-> fp8. Values beyond the largest finite one saturate; NaN stays NaN. On sm_80 the header converts in software.
#pragma once

#include <cuda_fp8.h>

#include "warploom/convert.cuh"

namespace warploom {

WL_DEVICE float to_float(__nv_fp8_e4m3 x) { return static_cast<float>(x); }
WL_DEVICE float to_float(__nv_fp8_e5m2 x) { return static_cast<float>(x); }

template <>
struct FromFloat<__nv_fp8_e4m3> {
  WL_DEVICE static __nv_fp8_e4m3 convert(float x) { return __nv_fp8_e4m3(x); }
};
template <>
struct FromFloat<__nv_fp8_e5m2> {
  WL_DEVICE static __nv_fp8_e5m2 convert(float x) { return __nv_fp8_e5m2(x); }
};

}  // namespace warploom
