// Vector stores to global memory that stay one instruction.
//
// NVVM may split `Vec::store` when the elements were computed one by one: 8 bytes of bf16 came out as two 4-byte stores.
// PTX is not split. (`Vec::store_streaming` is PTX inside too, but marks lines to be evicted first; results that the next
// kernel reads should stay in L2.)
#pragma once

#include "warploom/vec.cuh"

namespace warploom {

WL_DEVICE void store_global_bits(uint4* pointer, uint4 x) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(pointer), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
}
WL_DEVICE void store_global_bits(uint2* pointer, uint2 x) {
  asm volatile("st.global.v2.u32 [%0], {%1, %2};" ::"l"(pointer), "r"(x.x), "r"(x.y) : "memory");
}
WL_DEVICE void store_global_bits(uint32_t* pointer, uint32_t x) { *pointer = x; }
WL_DEVICE void store_global_bits(uint16_t* pointer, uint16_t x) { *pointer = x; }
WL_DEVICE void store_global_bits(uint8_t* pointer, uint8_t x) { *pointer = x; }

// `pointer` lies in global memory and is aligned to the vector.
template <class T, int N>
WL_DEVICE void store_global(T* pointer, const Vec<T, N>& vector) {
  store_global_bits(reinterpret_cast<typename Vec<T, N>::Raw*>(pointer), vector.raw());
}

}  // namespace warploom
