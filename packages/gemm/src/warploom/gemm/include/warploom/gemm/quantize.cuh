// Quantisers to fp8: token groups, 128x128 blocks of weights, whole tensors. All are bound by memory.
#pragma once

#include "warploom/gemm/fp8_scale.cuh"
#include "warploom/reduce.cuh"

namespace warploom::gemm {

// One batch of x and q is [rows, columns], of scale [row_blocks, column_blocks]; strides in elements.
struct QuantizeParams {
  const void* x;
  void* q;
  float* scale;
  int64_t x_batch_stride;
  int64_t x_row_stride;
  int64_t scale_batch_stride;
  int64_t scale_row_stride;
  int64_t scale_column_stride;
  uint32_t rows;
  uint32_t columns;  // a multiple of the elements in a 16-byte vector of x
  uint32_t column_blocks;
  float eps;
  int power_of_two;
};

// Groups of kGroup columns of a row share a scale. Each lane holds 16 elements of a group, so 8 lanes make a group of 128:
// more lanes would spend their time on shuffles and on the divisions of each group. The vectors of a group are dealt to
// its lanes in turn, so that every load covers whole 128-byte lines. A thread has the same group of kRows rows in flight.
//
// grid: (ceil(ceil(rows / kRows) * column_blocks / groups of a block), batch)
template <class Config>
__global__ void __launch_bounds__(Config::kThreads) quantize_groups_kernel(const __grid_constant__ QuantizeParams params) {
  using In = typename Config::In;
  using Out = typename Config::Out;
  constexpr int kWidth = kVecWidth<In>;
  constexpr int kVectors = 16 / kWidth;
  constexpr int kLanes = Config::kGroup / 16;
  constexpr int kRows = Config::kRows;

  const uint32_t lane = threadIdx.x % kLanes;
  const uint32_t group = blockIdx.x * (Config::kThreads / kLanes) + threadIdx.x / kLanes;
  const uint32_t first_row = group / params.column_blocks * kRows;
  const uint32_t block = group % params.column_blocks;
  const uint32_t column = block * Config::kGroup + lane * kWidth;

  const In* x = static_cast<const In*>(params.x) + blockIdx.y * params.x_batch_stride + first_row * params.x_row_stride;
  uint4 values[kRows][kVectors];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      const uint32_t at = column + j * kLanes * kWidth;
      values[i][j] = load_vector(x + i * params.x_row_stride + at, first_row + i < params.rows && at < params.columns);
    }
  }
  Out* q = static_cast<Out*>(params.q) + (int64_t(blockIdx.y) * params.rows + first_row) * params.columns;
  float* scales = params.scale + blockIdx.y * params.scale_batch_stride + first_row * params.scale_row_stride +
                  block * params.scale_column_stride;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const float amax = warp_reduce<kLanes>(abs_max<In>(values[i]), MaxNan());
    const Fp8Scale scale = fp8_scale<Out>(amax, params.eps, params.power_of_two);
    if (first_row + i >= params.rows) continue;
    if (lane == 0) scales[i * params.scale_row_stride] = scale.scale;
#pragma unroll
    for (int j = 0; j < kVectors; ++j) {
      const uint32_t at = column + j * kLanes * kWidth;
      if (at < params.columns) store_fp8<Out, In>(q + int64_t(i) * params.columns + at, values[i][j], scale.inverse);
    }
  }
}

// Tiles of 128 x 128 share a scale. One thread block holds a tile in registers between its only read and its only write.
//
// grid: (row_blocks * column_blocks, batch)
template <class Config>
__global__ void __launch_bounds__(Config::kThreads) quantize_tiles_kernel(const __grid_constant__ QuantizeParams params) {
  using In = typename Config::In;
  using Out = typename Config::Out;
  constexpr int kTile = 128;
  constexpr int kWidth = kVecWidth<In>;
  constexpr int kLanes = kTile / kWidth;
  constexpr int kRowsAtOnce = Config::kThreads / kLanes;
  constexpr int kVectors = kTile / kRowsAtOnce;
  __shared__ float scratch[Config::kThreads / kWarpSize];

  const uint32_t row_block = blockIdx.x / params.column_blocks;
  const uint32_t column_block = blockIdx.x % params.column_blocks;
  const uint32_t row = row_block * kTile + threadIdx.x / kLanes;
  const uint32_t column = column_block * kTile + (threadIdx.x % kLanes) * kWidth;
  // Rows of this thread that exist, of the kVectors that it would have.
  const uint32_t present = column < params.columns && row < params.rows ? params.rows - row : 0;

  const In* x = static_cast<const In*>(params.x) + blockIdx.y * params.x_batch_stride + row * params.x_row_stride + column;
  uint4 values[kVectors];
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    values[i] = load_vector(x + i * kRowsAtOnce * params.x_row_stride, i * kRowsAtOnce < present);
  }
  const float amax = block_reduce<Config::kThreads>(abs_max<In>(values), MaxNan(), scratch);
  const Fp8Scale scale = fp8_scale<Out>(amax, params.eps, params.power_of_two);
  if (threadIdx.x == 0) {
    params.scale[blockIdx.y * params.scale_batch_stride + row_block * params.scale_row_stride +
                 column_block * params.scale_column_stride] = scale.scale;
  }
  Out* q = static_cast<Out*>(params.q) + (int64_t(blockIdx.y) * params.rows + row) * params.columns + column;
#pragma unroll
  for (int i = 0; i < kVectors; ++i) {
    if (i * kRowsAtOnce < present) store_fp8<Out, In>(q + int64_t(i) * kRowsAtOnce * params.columns, values[i], scale.inverse);
  }
}

struct QuantizeTensorParams {
  const void* x;
  void* q;
  float* scale;         // written, or read when it is static
  uint32_t* amax_bits;  // zeroed by the caller; null when the scale is static
  int64_t vectors;      // of 16 bytes in x
  float eps;
};

// The largest magnitude of a tensor. Bits of non-negative floats order like the floats, with NaN above infinity.
template <class Config>
__global__ void __launch_bounds__(Config::kThreads) tensor_amax_kernel(const __grid_constant__ QuantizeTensorParams params) {
  using In = typename Config::In;
  constexpr int kUnroll = 4;
  __shared__ float scratch[Config::kThreads / kWarpSize];
  const uint4* x = static_cast<const uint4*>(params.x);
  const int64_t step = int64_t(gridDim.x) * Config::kThreads;
  float amax = 0.f;
  for (int64_t first = int64_t(blockIdx.x) * Config::kThreads + threadIdx.x; first < params.vectors; first += kUnroll * step) {
    uint4 values[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int64_t at = first + i * step;
      values[i] = at < params.vectors ? x[at] : make_uint4(0, 0, 0, 0);
    }
    amax = MaxNan()(amax, abs_max<In>(values));
  }
  amax = block_reduce<Config::kThreads>(amax, MaxNan(), scratch);
  if (threadIdx.x == 0) atomicMax(params.amax_bits, __float_as_uint(amax));
}

// Casts a tensor with the scale of `amax_bits`, or with the one that the caller gave.
template <class Config>
__global__ void __launch_bounds__(Config::kThreads) quantize_tensor_kernel(const __grid_constant__ QuantizeTensorParams params) {
  using In = typename Config::In;
  using Out = typename Config::Out;
  constexpr int kUnroll = 4;
  Fp8Scale scale;
  if (params.amax_bits == nullptr) {
    scale.inverse = __frcp_rn(*params.scale);
  } else {
    scale = fp8_scale<Out>(__uint_as_float(*params.amax_bits), params.eps, false);
    if (blockIdx.x == 0 && threadIdx.x == 0) *params.scale = scale.scale;
  }
  const uint4* x = static_cast<const uint4*>(params.x);
  Out* q = static_cast<Out*>(params.q);
  const int64_t step = int64_t(gridDim.x) * Config::kThreads;
  for (int64_t first = int64_t(blockIdx.x) * Config::kThreads + threadIdx.x; first < params.vectors; first += kUnroll * step) {
    uint4 values[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) values[i] = load_vector(x + first + i * step, first + i * step < params.vectors);
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int64_t at = first + i * step;
      if (at < params.vectors) store_fp8<Out, In>(q + at * kVecWidth<In>, values[i], scale.inverse);
    }
  }
}

}  // namespace warploom::gemm
