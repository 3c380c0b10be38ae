// 16-byte accesses of system scope: peers see them. Four of 32 bits to the memory model, or two of 64, in no order.
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

WL_DEVICE uint4 load_halves_relaxed_system(const uint4* pointer) {
  uint64_t low, high;
  asm volatile("ld.relaxed.sys.global.v2.u64 {%0, %1}, [%2];" : "=l"(low), "=l"(high) : "l"(pointer) : "memory");
  return make_uint4(uint32_t(low), uint32_t(low >> 32), uint32_t(high), uint32_t(high >> 32));
}

WL_DEVICE void store_halves_relaxed_system(uint4* pointer, uint4 value) {
  const uint64_t low = value.x | uint64_t(value.y) << 32, high = value.z | uint64_t(value.w) << 32;
  asm volatile("st.relaxed.sys.global.v2.u64 [%0], {%1, %2};" ::"l"(pointer), "l"(low), "l"(high) : "memory");
}

}  // namespace warploom
