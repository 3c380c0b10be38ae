// Matrix products of one warp on 16-bit values with float32 sums (sm_80), and the loads of their operands from shared memory.
//
// Of a 16 x 16 operand A, lane l holds rows l / 4 and l / 4 + 8, columns 2 (l % 4) and + 8, two neighbours a register. Of a
// 16 x 8 operand B, rows 2 (l % 4) and + 8, two neighbours a register, column l / 4. Sums lie as A does, 8 columns wide.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "warploom/common.cuh"

namespace warploom {

// Four 8 x 8 matrices of 16-bit values; lanes 8 i to 8 i + 7 give the addresses of the rows of matrix i, 16 bytes each.
WL_DEVICE void load_matrices(uint32_t (&to)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address));
}
WL_DEVICE void load_matrices_transposed(uint32_t (&to)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address));
}

// Two of them; lanes 0 to 15 give the addresses.
WL_DEVICE void load_matrices(uint32_t (&to)[2], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];" : "=r"(to[0]), "=r"(to[1]) : "r"(address));
}
WL_DEVICE void load_matrices_transposed(uint32_t (&to)[2], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];" : "=r"(to[0]), "=r"(to[1]) : "r"(address));
}

#if __CUDA_ARCH__ >= 900
// Four matrices of 8 rows to where lane l has the address of row l % 8 of matrix l / 8.
WL_DEVICE void store_matrices(uint32_t address, const uint32_t (&from)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(from[0]), "r"(from[1]),
               "r"(from[2]), "r"(from[3])
               : "memory");
}
// What comes to lie in a row there is a column of a matrix.
WL_DEVICE void store_matrices_transposed(uint32_t address, const uint32_t (&from)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(from[0]), "r"(from[1]),
               "r"(from[2]), "r"(from[3])
               : "memory");
}
// Two matrices; lanes 0 to 15 have the addresses.
WL_DEVICE void store_matrices_transposed(uint32_t address, const uint32_t (&from)[2]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(address), "r"(from[0]), "r"(from[1])
               : "memory");
}
#endif

// sums += A B, 16 x 16 by 16 x 8. `T` of 8 bits is e4m3 (sm_89), whose operands are the same bytes: 32 columns of A.
template <class T>
WL_DEVICE void multiply_add(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  static_assert(is_same_v<T, __half> || is_same_v<T, __nv_bfloat16> || sizeof(T) == 1, "operands of 16 bits, or e4m3");
  if constexpr (sizeof(T) == 1) {
    asm volatile(
        "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else if constexpr (is_same_v<T, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// Two numbers as neighbours of an operand.
template <class T>
WL_DEVICE uint32_t pack_operand(float low, float high) {
  if constexpr (is_same_v<T, __half>) {
    const __half2 pair = __floats2half2_rn(low, high);
    return reinterpret_cast<const uint32_t&>(pair);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return reinterpret_cast<const uint32_t&>(pair);
  }
}

// And back.
template <class T>
WL_DEVICE float2 unpack_operand(uint32_t pair) {
  if constexpr (is_same_v<T, __half>) {
    return __half22float2(reinterpret_cast<const __half2&>(pair));
  } else {
    return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000)};
  }
}

}  // namespace warploom
