// Quantisers to fp8 of what a model computes just before: SiLU-and-multiply, and RMSNorm after its residual.
//
// Bound by memory: values stay float32 in registers between the only read of the inputs and the only write of the codes.
#pragma once

#include "warploom/gemm/row_piece.cuh"
#include "warploom/reduce.cuh"

namespace warploom::gemm {

// Which elements share a scale: those of a group of columns, those of a row, or all, whose scale the caller gives.
constexpr int kScaleOfGroup = 0;
constexpr int kScaleOfRow = 1;
constexpr int kScaleGiven = 2;

// --- SiLU ---

WL_DEVICE float reciprocal_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// x / (1 + exp(-x)), off by at most 4.5 * 2^-23 of its value: two from exp2, one from the reciprocal, the rest from roundings.
// Minus zero below -87, minus infinity included: it is under 2e-36 there, and exp(-x) overflows soon after.
//
// The integer part of exp2's argument goes into the exponent: rounded as a whole, an argument of 32 would cost another 11.
WL_DEVICE float silu(float x) {
  constexpr float kLog2eRest = 1.925963033500011e-8f;  // log2(e) - kLog2e
  constexpr float kRounder = 12582912.f;               // 1.5 * 2^23: a sum with it is an integer, which its low bits hold
  const float bounded = fminf(x, 32.f);                // 1 + exp(-32) is 1; NaN comes back with the product by x
  const float rounded = fmaf(-bounded, kLog2e, kRounder);
  const float fraction = fmaf(-bounded, kLog2eRest, fmaf(-bounded, kLog2e, kRounder - rounded));
  const uint32_t exponent = __float_as_uint(rounded) << 23;
  const float power = __uint_as_float(__float_as_uint(exp2_approx(fraction)) + exponent);
  const float y = x * reciprocal_approx(1.f + power);
  return x < -87.f ? -0.f : y;
}

// x is [batch, rows, 2 * columns], gates before what they multiply; q is [batch, rows, columns] and contiguous.
struct SiluQuantizeParams {
  const void* x;
  void* q;
  float* scale;            // [batch, rows, column_blocks] to write, or the one that was given
  const uint32_t* counts;  // rows of each matrix that count, in the masked kernel
  int64_t x_batch_stride;
  int64_t x_row_stride;
  int64_t scale_batch_stride;
  int64_t scale_row_stride;
  int64_t scale_column_stride;
  int64_t count_stride;
  uint32_t batch;
  uint32_t rows;
  uint32_t columns;
  uint32_t column_blocks;
  float eps;
  int power_of_two;
};

constexpr int kSiluBlocks = 4;  // a multiprocessor

// The piece `number` of a row. All lanes of a warp call it together, those with nothing to do as well.
template <class Config>
WL_DEVICE void quantize_silu_piece(const SiluQuantizeParams& params, uint32_t matrix, uint32_t row, uint32_t number,
                                   bool present) {
  using In = typename Config::In;
  using Out = typename Config::Out;
  using Piece = RowPiece<In, Config::kGroup>;
  const Piece piece(number, present ? params.columns : 0);

  const In* gates = static_cast<const In*>(params.x) + matrix * params.x_batch_stride + row * params.x_row_stride;
  typename Piece::Vectors gate, up;
  piece.load(gates, gate);
  piece.load(gates + params.columns, up);
  float inverse;
  if constexpr (Config::kScales == kScaleGiven) inverse = __frcp_rn(*params.scale);

  typename Piece::Floats y;
#pragma unroll
  for (int i = 0; i < Piece::kVectors; ++i) {
    float factor[Piece::kWidth];
    unpack<In>(gate[i], y[i]);
    unpack<In>(up[i], factor);
#pragma unroll
    for (int j = 0; j < Piece::kWidth; ++j) y[i][j] = silu(y[i][j]) * factor[j];
  }

  if constexpr (Config::kScales == kScaleOfGroup) {
    const float amax = warp_reduce<Piece::kLanes>(Piece::abs_max(y), MaxNan());
    const Fp8Scale scale = fp8_scale<Out>(amax, params.eps, params.power_of_two);
    float* scales = params.scale + matrix * params.scale_batch_stride + row * params.scale_row_stride;
    if (piece.leads()) scales[piece.group * params.scale_column_stride] = scale.scale;
    inverse = scale.inverse;
  }
  Out* q = static_cast<Out*>(params.q) + (int64_t(matrix) * params.rows + row) * params.columns;
  piece.store_fp8(q, y, inverse);
}

// A thread has 64 bytes of loads in flight, 128 of float32. Registers for four blocks a multiprocessor: with those for six, the
// compiler loads the second half when it has done with the first.
//
// grid: (ceil(rows * pieces of a row / kThreads), batch)
template <class Config>
__global__ void __launch_bounds__(Config::kThreads, kSiluBlocks)
    silu_quantize_kernel(const __grid_constant__ SiluQuantizeParams params) {
  const uint32_t pieces = params.column_blocks * RowPiece<typename Config::In, Config::kGroup>::kLanes;
  const uint32_t number = blockIdx.x * Config::kThreads + threadIdx.x;
  const uint32_t row = number / pieces;
  quantize_silu_piece<Config>(params, blockIdx.y, row, number % pieces, row < params.rows);
}

constexpr int kMaxMatrices = 1024;

// Numbers the rows that count through: those of matrix i start at `starts[i]`, and `starts[kMaxMatrices]` is their number.
template <int kThreads>
WL_DEVICE void number_rows(const SiluQuantizeParams& params, uint32_t (&starts)[kMaxMatrices + 1]) {
  constexpr int kCounts = kMaxMatrices / kThreads;
  __shared__ uint32_t of_warps[kThreads / kWarpSize];
  uint32_t counts[kCounts], sum = 0;
#pragma unroll
  for (int i = 0; i < kCounts; ++i) {
    const uint32_t matrix = threadIdx.x * kCounts + i;
    const int count = matrix < params.batch ? int(params.counts[matrix * params.count_stride]) : 0;
    counts[i] = min(uint32_t(max(count, 0)), params.rows);
    sum += counts[i];
  }
  const uint32_t through = warp_prefix_sum(sum);
  if (lane_id() == kWarpSize - 1) of_warps[warp_id()] = through;
  __syncthreads();
  uint32_t next = through - sum;
  for (int warp = 0; warp < warp_id(); ++warp) next += of_warps[warp];
  if (threadIdx.x == 0) starts[0] = 0;
#pragma unroll
  for (int i = 0; i < kCounts; ++i) starts[threadIdx.x * kCounts + i + 1] = next += counts[i];
  __syncthreads();
}

WL_DEVICE uint32_t matrix_of_row(const uint32_t (&starts)[kMaxMatrices + 1], uint32_t number) {
  uint32_t matrix = 0;
#pragma unroll
  for (int step = kMaxMatrices / 2; step > 0; step /= 2) {
    if (starts[matrix + step] <= number) matrix += step;
  }
  return matrix;
}

// Of each matrix only the first rows count. Thread blocks share those evenly, whichever matrices have them.
//
// grid: as many as run at once, or fewer
template <class Config>
__global__ void __launch_bounds__(Config::kThreads, kSiluBlocks)
    masked_silu_quantize_kernel(const __grid_constant__ SiluQuantizeParams params) {
  __shared__ uint32_t starts[kMaxMatrices + 1];
  number_rows<Config::kThreads>(params, starts);
  const uint32_t pieces = params.column_blocks * RowPiece<typename Config::In, Config::kGroup>::kLanes;
  const int64_t total = int64_t(starts[kMaxMatrices]) * pieces;
  const int64_t step = int64_t(gridDim.x) * Config::kThreads;
  for (int64_t first = int64_t(blockIdx.x) * Config::kThreads; first < total; first += step) {
    const uint32_t number = uint32_t(first) + threadIdx.x;
    const uint32_t row = number / pieces;
    const uint32_t matrix = matrix_of_row(starts, row);
    quantize_silu_piece<Config>(params, matrix, row - starts[matrix], number % pieces, number < total);
  }
}

// --- RMSNorm ---

constexpr int kMaxRowThreads = 512;

// x is [batch, rows, columns] as is the residual; q is contiguous.
struct RmsNormQuantizeParams {
  const void* x;
  const void* weight;  // [columns]
  void* residual;      // read and written where kResidual
  void* q;
  float* scale;  // [batch, rows, column_blocks] to write, or the one that was given
  int64_t x_batch_stride;
  int64_t x_row_stride;
  int64_t residual_batch_stride;
  int64_t residual_row_stride;
  int64_t scale_batch_stride;
  int64_t scale_row_stride;
  int64_t scale_column_stride;
  uint32_t rows;
  uint32_t columns;
  float norm_eps;
  float eps;
  int power_of_two;
};

// Over a thread block of any number of warps; every thread gets the result. Zero must be neutral.
template <class Op>
WL_DEVICE float reduce_row(float value, Op op, float (&scratch)[kMaxRowThreads / kWarpSize]) {
  constexpr int kMaxWarps = kMaxRowThreads / kWarpSize;
  const int warp = lane_id() % kMaxWarps;
  value = warp_reduce(value, op);
  if (blockDim.x == kWarpSize) return value;
  if (lane_id() == 0) scratch[warp_id()] = value;
  __syncthreads();
  return warp_reduce<kMaxWarps>(warp < int(blockDim.x) / kWarpSize ? scratch[warp] : 0.f, op);
}

// What a thread holds of a row: kPieces pieces, the next of which lies as many pieces further as there are threads.
template <class Config>
struct RowInRegisters {
  using In = typename Config::In;
  using Out = typename Config::Out;
  using Piece = RowPiece<In, Config::kGroup>;
  using Scratch = float[kMaxRowThreads / kWarpSize];
  static constexpr int kPieces = Config::kPieces;
  static constexpr int kVectors = Piece::kVectors;
  static constexpr int kWidth = Piece::kWidth;

  const RmsNormQuantizeParams& params;
  typename Piece::Vectors x[kPieces], residual[kPieces], weight[kPieces];
  typename Piece::Floats y[kPieces];
  float inverse;  // of the scale

  WL_DEVICE explicit RowInRegisters(const RmsNormQuantizeParams& params) : params(params) {}

  WL_DEVICE Piece piece(int i) const { return Piece(i * blockDim.x + threadIdx.x, params.columns); }
  WL_DEVICE In* residual_row() const {
    return static_cast<In*>(params.residual) + blockIdx.y * params.residual_batch_stride +
           blockIdx.x * params.residual_row_stride;
  }

  WL_DEVICE void load() {
    const In* row = static_cast<const In*>(params.x) + blockIdx.y * params.x_batch_stride + blockIdx.x * params.x_row_stride;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) piece(i).load(row, x[i]);
    if constexpr (Config::kResidual) {
#pragma unroll
      for (int i = 0; i < kPieces; ++i) piece(i).load(residual_row(), residual[i]);
    }
#pragma unroll
    for (int i = 0; i < kPieces; ++i) piece(i).load_cached(static_cast<const In*>(params.weight), weight[i]);
    if constexpr (Config::kScales == kScaleGiven) inverse = __frcp_rn(*params.scale);
  }

  WL_DEVICE void add_residual() {
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
#pragma unroll
      for (int j = 0; j < kVectors; ++j) {
        float sum[kWidth], other[kWidth];
        unpack<In>(x[i][j], sum);
        unpack<In>(residual[i][j], other);
#pragma unroll
        for (int k = 0; k < kWidth; ++k) sum[k] += other[k];
        x[i][j] = pack<In>(sum);
      }
      piece(i).store(residual_row(), x[i]);
    }
  }

  WL_DEVICE void normalise(Scratch& scratch) {
    float squares = 0.f;
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
#pragma unroll
      for (int j = 0; j < kVectors; ++j) {
        unpack<In>(x[i][j], y[i][j]);
#pragma unroll
        for (int k = 0; k < kWidth; ++k) squares = fmaf(y[i][j][k], y[i][j][k], squares);
      }
    }
    const float mean = reduce_row(squares, Sum(), scratch) / float(params.columns);
    const float norm = rsqrtf(mean + params.norm_eps);
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
#pragma unroll
      for (int j = 0; j < kVectors; ++j) {
        float factor[kWidth];
        unpack<In>(weight[i][j], factor);
#pragma unroll
        for (int k = 0; k < kWidth; ++k) y[i][j][k] = y[i][j][k] * norm * factor[k];
      }
    }
  }

  WL_DEVICE void quantise(Scratch& scratch) {
    Out* q = static_cast<Out*>(params.q) + (int64_t(blockIdx.y) * params.rows + blockIdx.x) * params.columns;
    float* scales = params.scale + blockIdx.y * params.scale_batch_stride + blockIdx.x * params.scale_row_stride;
    if constexpr (Config::kScales == kScaleOfRow) {
      float amax = Piece::abs_max(y[0]);
#pragma unroll
      for (int i = 1; i < kPieces; ++i) amax = MaxNan()(amax, Piece::abs_max(y[i]));
      const Fp8Scale scale = fp8_scale<Out>(reduce_row(amax, MaxNan(), scratch), params.eps, params.power_of_two);
      if (threadIdx.x == 0) *scales = scale.scale;
      inverse = scale.inverse;
    }
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      if constexpr (Config::kScales == kScaleOfGroup) {
        const float amax = warp_reduce<Piece::kLanes>(Piece::abs_max(y[i]), MaxNan());
        const Fp8Scale scale = fp8_scale<Out>(amax, params.eps, params.power_of_two);
        if (piece(i).leads()) scales[piece(i).group * params.scale_column_stride] = scale.scale;
        inverse = scale.inverse;
      }
      piece(i).store_fp8(q, y[i], inverse);
    }
  }
};

// A thread block holds a row, in as many whole warps as it takes.
//
// grid: (rows, batch)
template <class Config>
__global__ void __launch_bounds__(kMaxRowThreads)
    rmsnorm_quantize_kernel(const __grid_constant__ RmsNormQuantizeParams params) {
  __shared__ float scratch[2][kMaxRowThreads / kWarpSize];
  RowInRegisters<Config> row(params);
  row.load();
  if constexpr (Config::kResidual) row.add_residual();
  row.normalise(scratch[0]);
  row.quantise(scratch[1]);
}

}  // namespace warploom::gemm
