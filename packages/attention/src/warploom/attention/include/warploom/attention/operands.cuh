// From rows of keys and values in shared memory to operands of matrix products.
#pragma once

#include "warploom/attention/key_value_ring.cuh"
#include "warploom/mma.cuh"
#include "warploom/vec.cuh"

namespace warploom::attention {

// What keys or values of type Kv are multiplied as: those of 8 bits become float16, which costs the fewest instructions.
template <class Query, class Kv>
using ProductType = conditional_t<sizeof(Kv) == 1, __half, Query>;

// Keys and values of the products' type T. Others are in operands_fp8.cuh, because their header takes time to compile.
template <class T, class Kv>
struct Operands {
  static_assert(is_same_v<T, Kv>, "include operands_fp8.cuh for keys and values of 8 bits");
  // The two blocks of 8 columns of an output's 16 are the first and the second half.
  static constexpr bool kInterleaved = false;

  // Of 16 components of queries and keys, the first of the two that a lane has in half 0 or 1 of an operand.
  WL_DEVICE static int column(int half) { return half * 8 + lane_id() % 4 * 2; }

  // 16 rows of keys, 16 of their components: operands B of both blocks of 8 keys.
  template <class Rows>
  WL_DEVICE static void load_keys(uint32_t (&to)[4], uint32_t rows, int step) {
    const int matrix = lane_id() / 8, row = lane_id() % 8 + matrix / 2 * 8;
    load_matrices(to, Rows::onwards(rows + Rows::offset(row, matrix % 2), 2 * step));
  }

  // 16 rows of values, 16 of their components: operands B of both blocks of 8 components.
  template <class Rows>
  WL_DEVICE static void load_values(uint32_t (&to)[4], uint32_t rows, int step) {
    const int matrix = lane_id() / 8, row = lane_id() % 8 + matrix % 2 * 8;
    load_matrices_transposed(to, Rows::onwards(rows + Rows::offset(row, matrix / 2), 2 * step));
  }

  // Pairs of neighbours in a row.
  template <int kCount>
  WL_DEVICE static Vec<uint32_t, kCount> load_pairs(const uint8_t* from) {
    return Vec<uint32_t, kCount>::load(reinterpret_cast<const uint32_t*>(from));
  }
};

}  // namespace warploom::attention
