// 16-byte accesses of system scope: peers see them. Four 32-bit ones to the memory model, in no order.
#pragma once

#include "warploom/common.cuh"

namespace warploom {

WL_DEVICE uint4 load_relaxed_system(const uint4* pointer) {
  uint4 value;
  asm volatile("ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(pointer)
               : "memory");
  return value;
}

WL_DEVICE void store_relaxed_system(uint4* pointer, uint4 value) {
  asm volatile("st.relaxed.sys.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(pointer), "r"(value.x), "r"(value.y),
               "r"(value.z), "r"(value.w)
               : "memory");
}

}  // namespace warploom
