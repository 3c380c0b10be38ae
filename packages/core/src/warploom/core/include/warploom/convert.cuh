// fp32 <-> fp16 and bf16. fp8 lies in convert_fp8.cuh, whose header takes longer to compile.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "warploom/common.cuh"

namespace warploom {

WL_DEVICE float to_float(float x) { return x; }
WL_DEVICE float to_float(__half x) { return __half2float(x); }
WL_DEVICE float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
struct FromFloat;
template <>
struct FromFloat<float> {
  WL_DEVICE static float convert(float x) { return x; }
};
template <>
struct FromFloat<__half> {
  WL_DEVICE static __half convert(float x) { return __float2half_rn(x); }
};
template <>
struct FromFloat<__nv_bfloat16> {
  WL_DEVICE static __nv_bfloat16 convert(float x) { return __float2bfloat16_rn(x); }
};

// Round to nearest even.
template <class T>
WL_DEVICE T from_float(float x) {
  return FromFloat<T>::convert(x);
}

}  // namespace warploom
