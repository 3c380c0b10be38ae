// Matrix products of a warpgroup, 128 threads, on operands of 16 or 8 bits with float32 sums (sm_90a).
//
// Operand B lies in shared memory, A there or in registers as for warps (mma.cuh), 16 rows a warp. Sums lie as there too: of
// column block j of 8, a lane has sums[j][0..3]. Products run on their own: wgmma_fence() before the first that touches
// registers which were written since, wgmma_commit() after some, wgmma_wait() before their sums are read.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "warploom/common.cuh"

namespace warploom {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

WL_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
WL_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until at most the last `kPending` groups are running.
template <int kPending>
WL_DEVICE void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Registers that products have written or read, after the wait for them: the compiler does not know that these ran on.
template <int kBlocks>
WL_DEVICE void wgmma_done(float (&sums)[kBlocks][4]) {
#pragma unroll
  for (int i = 0; i < kBlocks; ++i) {
    asm volatile("" : "+f"(sums[i][0]), "+f"(sums[i][1]), "+f"(sums[i][2]), "+f"(sums[i][3])::"memory");
  }
}
template <int kSteps>
WL_DEVICE void wgmma_done(uint32_t (&operands)[kSteps][4]) {
#pragma unroll
  for (int i = 0; i < kSteps; ++i) {
    asm volatile("" : "+r"(operands[i][0]), "+r"(operands[i][1]), "+r"(operands[i][2]), "+r"(operands[i][3])::"memory");
  }
}

// Between computations that are to run beside products and the wait for these: ptxas moves waits up, but not over a branch. `never`
// is a condition that is false, which it does not know, and comes after wgmma_done() of what has been computed.
WL_DEVICE void wgmma_hold(bool never) {
  if (never) __trap();
}

// Where an operand lies, in rows of 128 bytes whose 16-byte pieces are exchanged by the row's number modulo 8; `base` is a
// multiple of 1024 bytes plus that of a column. A row is one of A or B along the sums' rows or columns, and goes on along what
// is summed over ("K-major"). Eight rows are 1024 bytes.
WL_DEVICE uint32_t wgmma_rows(const void* base) { return (shared_address(base) & 0x3ffff) >> 4 | 1 << 16; }
// The same memory where a row is one of what is summed over, and goes on along the sums' columns ("MN-major"); the next 64
// columns lie `columns_bytes` on.
WL_DEVICE uint32_t wgmma_columns(const void* base, int columns_bytes) {
  return (shared_address(base) & 0x3ffff) >> 4 | uint32_t(columns_bytes >> 4) << 16;
}
// An operand `bytes` further on.
WL_DEVICE uint32_t wgmma_onwards(uint32_t operand, int bytes) { return operand + (bytes >> 4); }
// An operand that all lanes know to be the same: what is computed from it takes no registers of theirs.
WL_DEVICE uint32_t wgmma_uniform(uint32_t operand) { return __shfl_sync(kFullMask, operand, 0); }

// The upper half of operands' descriptors: eight rows are 1024 bytes, pieces are exchanged within 128.
constexpr uint32_t kWgmmaLayout = (1024 >> 4) | 1u << 30;

// A product is one asm statement that lists all its operands. The sums come first, and have the same names for every type.
#define WL_WGMMA_NAMES_1 "%0, %1, %2, %3"
#define WL_WGMMA_NAMES_2 WL_WGMMA_NAMES_1 ", %4, %5, %6, %7"
#define WL_WGMMA_NAMES_4 WL_WGMMA_NAMES_2 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define WL_WGMMA_NAMES_8 \
  WL_WGMMA_NAMES_4 ", " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WL_WGMMA_NAMES_12 \
  WL_WGMMA_NAMES_8 ", " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47"
#define WL_WGMMA_NAMES_16 \
  WL_WGMMA_NAMES_12 ", " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WL_WGMMA_NAMES_32 \
  WL_WGMMA_NAMES_16 ", " \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, " \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, " \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, " \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define WL_WGMMA_BLOCK(j) \
  "+f"(sums[j][0]), "+f"(sums[j][1]), "+f"(sums[j][2]), "+f"(sums[j][3])
#define WL_WGMMA_SUMS_1 WL_WGMMA_BLOCK(0)
#define WL_WGMMA_SUMS_2 WL_WGMMA_SUMS_1, WL_WGMMA_BLOCK(1)
#define WL_WGMMA_SUMS_4 WL_WGMMA_SUMS_2, WL_WGMMA_BLOCK(2), WL_WGMMA_BLOCK(3)
#define WL_WGMMA_SUMS_8 \
  WL_WGMMA_SUMS_4, \
  WL_WGMMA_BLOCK(4), WL_WGMMA_BLOCK(5), WL_WGMMA_BLOCK(6), WL_WGMMA_BLOCK(7)
#define WL_WGMMA_SUMS_12 \
  WL_WGMMA_SUMS_8, \
  WL_WGMMA_BLOCK(8), WL_WGMMA_BLOCK(9), WL_WGMMA_BLOCK(10), WL_WGMMA_BLOCK(11)
#define WL_WGMMA_SUMS_16 \
  WL_WGMMA_SUMS_12, \
  WL_WGMMA_BLOCK(12), WL_WGMMA_BLOCK(13), WL_WGMMA_BLOCK(14), WL_WGMMA_BLOCK(15)
#define WL_WGMMA_SUMS_32 \
  WL_WGMMA_SUMS_16, \
  WL_WGMMA_BLOCK(16), WL_WGMMA_BLOCK(17), WL_WGMMA_BLOCK(18), WL_WGMMA_BLOCK(19), \
  WL_WGMMA_BLOCK(20), WL_WGMMA_BLOCK(21), WL_WGMMA_BLOCK(22), WL_WGMMA_BLOCK(23), \
  WL_WGMMA_BLOCK(24), WL_WGMMA_BLOCK(25), WL_WGMMA_BLOCK(26), WL_WGMMA_BLOCK(27), \
  WL_WGMMA_BLOCK(28), WL_WGMMA_BLOCK(29), WL_WGMMA_BLOCK(30), WL_WGMMA_BLOCK(31)

// Both operands in shared memory; `a` to `layout` are the names of what follows the sums, `type` is that of the operands with how
// many of them are summed over at once, `order` the names of whether they are wgmma_columns(), which those of 8 bits cannot be.
#define WL_WGMMA_OF_ROWS(columns, type, depth, order, blocks, a, b, adds_up, layout) \
  asm volatile( \
      "{\n.reg .pred p;\n.reg .b64 a, b;\nmov.b64 a, {" a ", " layout "};\nmov.b64 b, {" b ", " layout "};\n" \
      "setp.ne.b32 p, " adds_up ", 0;\nwgmma.mma_async.sync.aligned.m64n" columns depth ".f32." type "." type \
      " {" WL_WGMMA_NAMES_##blocks "}, a, b, p, 1, 1" order ";\n}" \
      : WL_WGMMA_SUMS_##blocks \
      : "r"(operand_a), "r"(operand_b), "r"(int(adds)), "r"(kWgmmaLayout), "n"(int(kColumnsOfA)), "n"(int(kColumnsOfB)))

// A in registers, with the names `a`.
#define WL_WGMMA_OF_REGISTERS(columns, type, depth, order, blocks, a, b, layout) \
  asm volatile( \
      "{\n.reg .pred p;\n.reg .b64 b;\nmov.b64 b, {" b ", " layout "};\nsetp.ne.b32 p, 1, 0;\n" \
      "wgmma.mma_async.sync.aligned.m64n" columns depth ".f32." type "." type \
      " {" WL_WGMMA_NAMES_##blocks "}, {" a "}, b, p, 1, 1" order ";\n}" \
      : WL_WGMMA_SUMS_##blocks \
      : "r"(registers_of_a[0]), "r"(registers_of_a[1]), "r"(registers_of_a[2]), "r"(registers_of_a[3]), "r"(operand_b), \
        "r"(kWgmmaLayout))

#define WL_WGMMA_OF_TYPE(of, columns, order, ...) \
  if constexpr (kType == WgmmaType::kHalf) { \
    of(columns, "f16", "k16", order, __VA_ARGS__); \
  } else if constexpr (kType == WgmmaType::kBfloat) { \
    of(columns, "bf16", "k16", order, __VA_ARGS__); \
  } else { \
    of(columns, "e4m3", "k32", "", __VA_ARGS__); \
  }

enum class WgmmaType { kHalf, kBfloat, kE4m3 };

// Of operands; e4m3 is in wgmma_fp8.cuh, because its header takes time to compile.
template <class T>
struct WgmmaTypeOf;
template <>
struct WgmmaTypeOf<__half> {
  static constexpr WgmmaType kType = WgmmaType::kHalf;
};
template <>
struct WgmmaTypeOf<__nv_bfloat16> {
  static constexpr WgmmaType kType = WgmmaType::kBfloat;
};

// Products with sums of 8 * kBlocks columns.
template <class T, int kBlocks>
struct Wgmma {
  static constexpr WgmmaType kType = WgmmaTypeOf<T>::kType;
  static constexpr int kDepth = 32 / int(sizeof(T));  // elements that are summed over

  // sums = A B, or sums += A B, of operands by wgmma_rows(), or by wgmma_columns() if so said and they have 16 bits.
  template <bool kColumnsOfA = false, bool kColumnsOfB = false>
  WL_DEVICE static void run(float (&sums)[kBlocks][4], uint32_t operand_a, uint32_t operand_b, bool adds) {
    static_assert(kBlocks <= 32 && (kBlocks & (kBlocks - 1)) == 0, "sums have 8, 16, 32, 64, 128 or 256 columns");
    static_assert(sizeof(T) == 2 || !(kColumnsOfA || kColumnsOfB), "operands of 8 bits lie along what is summed over");
    if constexpr (kBlocks == 1) {
      WL_WGMMA_OF_TYPE(WL_WGMMA_OF_ROWS, "8", ", %8, %9", 1, "%4", "%5", "%6", "%7");
    } else if constexpr (kBlocks == 2) {
      WL_WGMMA_OF_TYPE(WL_WGMMA_OF_ROWS, "16", ", %12, %13", 2, "%8", "%9", "%10", "%11");
    } else if constexpr (kBlocks == 4) {
      WL_WGMMA_OF_TYPE(WL_WGMMA_OF_ROWS, "32", ", %20, %21", 4, "%16", "%17", "%18", "%19");
    } else if constexpr (kBlocks == 8) {
      WL_WGMMA_OF_TYPE(WL_WGMMA_OF_ROWS, "64", ", %36, %37", 8, "%32", "%33", "%34", "%35");
    } else if constexpr (kBlocks == 16) {
      WL_WGMMA_OF_TYPE(WL_WGMMA_OF_ROWS, "128", ", %68, %69", 16, "%64", "%65", "%66", "%67");
    } else {
      WL_WGMMA_OF_TYPE(WL_WGMMA_OF_ROWS, "256", ", %132, %133", 32, "%128", "%129", "%130", "%131");
    }
  }

  // sums += A B, with A in registers and B by wgmma_columns(), or by wgmma_rows() if it has 8 bits.
  WL_DEVICE static void add(float (&sums)[kBlocks][4], const uint32_t (&registers_of_a)[4], uint32_t operand_b) {
    static_assert(kBlocks == 8 || kBlocks == 12 || kBlocks == 16 || kBlocks == 32, "sums have 64, 96, 128 or 256 columns");
    if constexpr (kBlocks == 8) {
      WL_WGMMA_OF_TYPE(WL_WGMMA_OF_REGISTERS, "64", ", 1", 8, "%32, %33, %34, %35", "%36", "%37");
    } else if constexpr (kBlocks == 12) {
      WL_WGMMA_OF_TYPE(WL_WGMMA_OF_REGISTERS, "96", ", 1", 12, "%48, %49, %50, %51", "%52", "%53");
    } else if constexpr (kBlocks == 16) {
      WL_WGMMA_OF_TYPE(WL_WGMMA_OF_REGISTERS, "128", ", 1", 16, "%64, %65, %66, %67", "%68", "%69");
    } else {
      WL_WGMMA_OF_TYPE(WL_WGMMA_OF_REGISTERS, "256", ", 1", 32, "%128, %129, %130, %131", "%132", "%133");
    }
  }
};

#undef WL_WGMMA_NAMES_1
#undef WL_WGMMA_NAMES_2
#undef WL_WGMMA_NAMES_4
#undef WL_WGMMA_NAMES_8
#undef WL_WGMMA_NAMES_12
#undef WL_WGMMA_NAMES_16
#undef WL_WGMMA_NAMES_32
#undef WL_WGMMA_BLOCK
#undef WL_WGMMA_SUMS_1
#undef WL_WGMMA_SUMS_2
#undef WL_WGMMA_SUMS_4
#undef WL_WGMMA_SUMS_8
#undef WL_WGMMA_SUMS_12
#undef WL_WGMMA_SUMS_16
#undef WL_WGMMA_SUMS_32
#undef WL_WGMMA_OF_ROWS
#undef WL_WGMMA_OF_REGISTERS
#undef WL_WGMMA_OF_TYPE

#endif

}  // namespace warploom
