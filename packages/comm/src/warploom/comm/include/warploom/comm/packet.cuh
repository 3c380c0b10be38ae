// 16-byte accesses of system scope: peers see them. Two of 64 bits to the memory model, each of which arrives as a whole.
#pragma once

#include "warploom/common.cuh"

namespace warploom {

WL_DEVICE uint4 load_relaxed_system(const uint4* pointer) {
  uint64_t low, high;
  asm volatile("ld.relaxed.sys.global.v2.u64 {%0, %1}, [%2];" : "=l"(low), "=l"(high) : "l"(pointer) : "memory");
  return make_uint4(uint32_t(low), uint32_t(low >> 32), uint32_t(high), uint32_t(high >> 32));
}

WL_DEVICE void store_relaxed_system(uint4* pointer, uint4 value) {
  const uint64_t low = value.x | uint64_t(value.y) << 32, high = value.z | uint64_t(value.w) << 32;
  asm volatile("st.relaxed.sys.global.v2.u64 [%0], {%1, %2};" ::"l"(pointer), "l"(low), "l"(high) : "memory");
}

}  // namespace warploom
