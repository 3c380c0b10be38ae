// All-reduce of [tokens, hidden] with what follows it in a transformer block: residual, RMSNorm, fp8 quantisation, in one kernel.
//
// A block computes whole rows. Every step is rounded to the type of the input, as separate operators would, so results are
// those of an all-reduce and an epilogue, up to the order in which a row's squares are added.
#pragma once

#include "warploom/comm/message.cuh"
#include "warploom/comm/shares.cuh"
#include "warploom/reduce.cuh"

namespace warploom::comm {

// What elements of the quantised output share a scale; none where there is no such output.
enum class Scales { kNone, kGiven, kOfRow, kOfGroup };

constexpr float kLargestE4m3 = 448.0f;
constexpr float kSmallestScale = 1e-12f;  // a row of zeros must not divide by zero

// All tensors are contiguous and aligned to 16 bytes; null where they are not wanted.
struct FusionParams {
  const void* input;     // [tokens, hidden]
  void* output;          // sums
  const void* residual;  // [tokens, hidden]
  void* residual_out;    // sums plus residual; may be `residual`
  const void* gamma;     // [hidden]
  void* norm_out;
  void* codes;           // e4m3 [tokens, hidden]
  float* scales;         // [tokens, groups] to write, or the one that was given
  int64_t tokens;
  int reducers;          // in two trips: blocks that sum while the others finish rows; 0 if all do both
  float eps;
  float gamma_bias;
};

// Config: T, the element type; kRanks; kPackets of a row; kThreads; kNormalises; kScalesNumber; kGroupPackets.
template <class Config>
struct FusedRows {
  using T = typename Config::T;
  using Packet = Vec<T, kVecWidth<T>>;
  static constexpr int kWidth = kVecWidth<T>, kPackets = Config::kPackets, kThreads = Config::kThreads;
  static constexpr int kEach = ceil_div(kPackets, kThreads);  // packets of a row that a thread has
  static constexpr int kWarps = kThreads / kWarpSize;
  static constexpr Scales kScales = Scales(Config::kScalesNumber);
  using Row = uint4[kEach];

  // As the registers allow, what sums are added to and multiplied by is loaded before they are waited for: that takes as long
  // as a short message.
  static constexpr bool kLoadsResidual = kEach * Config::kRanks <= 16;
  static constexpr bool kKeepsGamma = Config::kNormalises && kEach <= 2;

  const FusionParams& params;
  float (&scratch)[2][kWarps];
  int turn = 0;
  uint4 kept_gamma[kKeepsGamma ? kEach : 1];

  WL_DEVICE static int packet(int each) { return int(threadIdx.x) + each * kThreads; }
  WL_DEVICE static bool has(int each) { return kPackets % kThreads == 0 || packet(each) < kPackets; }
  WL_DEVICE static int64_t place(int64_t token, int each) { return token * kPackets + packet(each); }

  // Load what all rows need.
  WL_DEVICE void open() {
    if constexpr (kKeepsGamma) {
#pragma unroll
      for (int each = 0; each < kEach; ++each) {
        if (has(each)) kept_gamma[each] = gamma(each);
      }
    }
  }

  // Load what a row's sums are added to.
  WL_DEVICE void load_residual(int64_t token, Row& residual) const {
    if constexpr (!Config::kNormalises) return;
#pragma unroll
    for (int each = 0; each < kEach; ++each) {
      if (has(each)) residual[each] = static_cast<const uint4*>(params.residual)[place(token, each)];
    }
  }

  // What follows from the sums of a row.
  WL_DEVICE void add_residual(int64_t token, Row& row, const Row& residual) {
    store(params.output, token, row);
    if constexpr (Config::kNormalises) {
      add(row, residual);
      store(params.residual_out, token, row);
    }
  }
  // And then, by all threads of the block.
  WL_DEVICE void finish(int64_t token, Row& row) {
    if constexpr (Config::kNormalises) {
      normalise(row);
      store(params.norm_out, token, row);
      if constexpr (kScales != Scales::kNone) quantise(token, row);
    }
  }

 private:
  WL_DEVICE static void store(void* to, int64_t token, const Row& row) {
    if (to == nullptr) return;
#pragma unroll
    for (int each = 0; each < kEach; ++each) {
      if (has(each)) static_cast<uint4*>(to)[place(token, each)] = row[each];
    }
  }

  WL_DEVICE uint4 gamma(int each) const { return static_cast<const uint4*>(params.gamma)[packet(each)]; }

  WL_DEVICE static void add(Row& row, const Row& residual) {
#pragma unroll
    for (int each = 0; each < kEach; ++each) {
      if (!has(each)) continue;
      Packet sum = Packet::from_raw(row[each]);
      const Packet other = Packet::from_raw(residual[each]);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) sum[i] = from_float<T>(to_float(sum[i]) + to_float(other[i]));
      row[each] = sum.raw();
    }
  }

  WL_DEVICE void normalise(Row& row) {
    float squares = 0.0f;
#pragma unroll
    for (int each = 0; each < kEach; ++each) {
      if (!has(each)) continue;
      const Packet x = Packet::from_raw(row[each]);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) squares += to_float(x[i]) * to_float(x[i]);
    }
    const float factor = rsqrtf(over_block(squares, Sum()) / float(kPackets * kWidth) + params.eps);
#pragma unroll
    for (int each = 0; each < kEach; ++each) {
      if (!has(each)) continue;
      Packet x = Packet::from_raw(row[each]);
      const Packet weight = Packet::from_raw(kKeepsGamma ? kept_gamma[kKeepsGamma ? each : 0] : gamma(each));
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        x[i] = from_float<T>(to_float(x[i]) * factor * (to_float(weight[i]) + params.gamma_bias));
      }
      row[each] = x.raw();
    }
  }

  WL_DEVICE void quantise(int64_t token, const Row& row) {
    float scale = 0.0f;
    if constexpr (kScales == Scales::kGiven) scale = *params.scales;
    if constexpr (kScales == Scales::kOfRow) {
      float largest = 0.0f;
#pragma unroll
      for (int each = 0; each < kEach; ++each) largest = MaxNan()(largest, largest_of(row, each));
      scale = scale_of(over_block(largest, MaxNan()));
      if (threadIdx.x == 0) params.scales[token] = scale;
    }
#pragma unroll
    for (int each = 0; each < kEach; ++each) {
      if constexpr (kScales == Scales::kOfGroup) {
        scale = scale_of(warp_reduce<Config::kGroupPackets>(largest_of(row, each), MaxNan()));
        const bool leads = has(each) && packet(each) % Config::kGroupPackets == 0;
        if (leads) params.scales[token * (kPackets / Config::kGroupPackets) + packet(each) / Config::kGroupPackets] = scale;
      }
      if (has(each)) store_codes(place(token, each), Packet::from_raw(row[each]), scale);
    }
  }

  WL_DEVICE void store_codes(int64_t place, const Packet& x, float scale) const {
    Vec<uint32_t, kWidth / 4> codes;
#pragma unroll
    for (int i = 0; i < kWidth; i += 4) {
      codes[i / 4] = pack_fp8x4<typename Config::Code>(to_float(x[i]) / scale, to_float(x[i + 1]) / scale,
                                                       to_float(x[i + 2]) / scale, to_float(x[i + 3]) / scale);
    }
    codes.store(static_cast<uint32_t*>(params.codes) + place * (kWidth / 4));
  }

  WL_DEVICE static float largest_of(const Row& row, int each) {
    float largest = 0.0f;
    if (!has(each)) return largest;
    const Packet x = Packet::from_raw(row[each]);
#pragma unroll
    for (int i = 0; i < kWidth; ++i) largest = MaxNan()(largest, fabsf(to_float(x[i])));
    return largest;
  }
  WL_DEVICE static float scale_of(float largest) { return MaxNan()(largest / kLargestE4m3, kSmallestScale); }

  // In turns: a thread may still read what it has reduced when others are at the next reduction, not at the one after.
  template <class Op>
  WL_DEVICE float over_block(float value, Op op) {
    turn ^= 1;
    return block_reduce<kThreads>(value, op, scratch[turn]);
  }
};

// Take rows and compute what follows from them: one of each chunk of `chunk_rows`, then the next of each. Of every packet of
// the message, `take(packet, seen)` makes the sum of what `look(packet, seen)` has loaded, `kSeen` packets. With `kAhead` a
// block looks at a row while it finishes the one before: of many rows most have come. After its last it waits for no one.
template <int kSeen, bool kAhead, class Config, class Look, class Take>
WL_DEVICE void finish_rows(FusedRows<Config>& rows, int first, int step, int chunk_rows, const Mailboxes& boxes,
                           Call& call, Look look, Take take) {
  using Rows = FusedRows<Config>;
  const int tokens = int(rows.params.tokens), chunks = ceil_div(tokens, chunk_rows), end = chunks * chunk_rows;
  const auto token_of = [&](int k) { return k < end ? k % chunks * chunk_rows + k / chunks : tokens; };
  uint4 seen[kAhead ? Rows::kEach : 1][kSeen];
  typename Rows::Row row, residual;
  const auto prepare = [&](int token) {
    if (token >= tokens) return;
    if constexpr (Rows::kLoadsResidual) rows.load_residual(token, residual);
#pragma unroll
    for (int each = 0; each < (kAhead ? Rows::kEach : 0); ++each) {
      if (Rows::has(each)) look(Rows::place(token, each), seen[each]);
    }
  };
  rows.open();
  if (kAhead) prepare(token_of(first));
  for (int k = first; k < end; k += step) {
    const int token = token_of(k);  // past the end in the last chunk
    if (!kAhead) prepare(token);
#pragma unroll
    for (int each = 0; each < Rows::kEach; ++each) {
      if (token >= tokens || !Rows::has(each)) continue;
      if (!kAhead) look(Rows::place(token, each), seen[0]);
      row[each] = take(Rows::place(token, each), seen[kAhead ? each : 0]);
    }
    if (k + step >= end) end_call(call, boxes);
    if (token < tokens) {
      if constexpr (!Rows::kLoadsResidual) rows.load_residual(token, residual);
      rows.add_residual(token, row, residual);
    }
    if (kAhead) prepare(token_of(k + step));
    if (token < tokens) rows.finish(token, row);
  }
}

// Every rank sends its rows to every peer.
template <class Config>
__global__ void __launch_bounds__(Config::kThreads, 1)
    one_shot_fusion_kernel(const __grid_constant__ Mailboxes boxes, const __grid_constant__ FusionParams params) {
  using T = typename Config::T;
  using Rows = FusedRows<Config>;
  constexpr int kRanks = Config::kRanks;
  __shared__ float scratch[2][Rows::kWarps];
  Rows rows{params, scratch};
  const uint4* input = static_cast<const uint4*>(params.input);
  const int64_t packets = params.tokens * Config::kPackets;
  Call call(kOneShotFusion, kElement<T>, packets);
  if (!begin_call(call, boxes)) return;

  for (int64_t token = blockIdx.x; token < params.tokens; token += gridDim.x) {
#pragma unroll
    for (int each = 0; each < Rows::kEach; ++each) {
      if (!Rows::has(each)) continue;
      const int64_t place = Rows::place(token, each);
      const uint4 own = input[place];
#pragma unroll
      for (int hop = 1; hop < kRanks; ++hop) {
        const int peer = (boxes.rank + hop) % kRanks;
        send_packet(boxes.half(peer, call) + boxes.rank * packets + place, own);
      }
    }
  }
  const auto look = [&](int64_t place, uint4 (&seen)[kRanks]) {
    set_own(seen, boxes.rank, input[place]);
    load_packets(seen, boxes.half(boxes.rank, call) + place, packets, boxes.rank);
  };
  const auto take = [&](int64_t place, uint4 (&seen)[kRanks]) {
    const bool complete = await_packets(seen, boxes.half(boxes.rank, call) + place, packets, boxes, call, 0);
    return complete ? sum_packets<T>(seen) : nan_packet();
  };
  finish_rows<kRanks, false>(rows, blockIdx.x, gridDim.x, int(params.tokens), boxes, call, look, take);
}

// What happens to packet i of every chunk before rows are finished. The half holds `kRanks` chunks to sum, then as many sums.
template <class T, int kRanks>
struct FusedStages {
  using Packets = uint4[kRanks];

  const Mailboxes& boxes;
  Call& call;
  const uint4* input;
  const int packets, chunk;  // what mailboxes hold can be counted so

  WL_DEVICE int peer(int hop) const { return (boxes.rank + hop) % kRanks; }
  WL_DEVICE uint4 packet_or_zeros(int i) const { return i < packets ? input[i] : make_uint4(0, 0, 0, 0); }
  WL_DEVICE uint4* parts(int owner) const { return boxes.half(owner, call); }
  WL_DEVICE uint4* sums(int owner) const { return parts(owner) + kRanks * chunk; }

  WL_DEVICE void load_sent(int i, Packets& sent) const {
#pragma unroll
    for (int hop = 1; hop < kRanks; ++hop) sent[hop] = packet_or_zeros(peer(hop) * chunk + i);
  }
  WL_DEVICE void scatter(int i, const Packets& sent) const {
#pragma unroll
    for (int hop = 1; hop < kRanks; ++hop) send_packet(parts(peer(hop)) + boxes.rank * chunk + i, sent[hop]);
  }
  WL_DEVICE void load_parts(int i, Packets& loaded) const {
    set_own(loaded, boxes.rank, packet_or_zeros(boxes.rank * chunk + i));
    load_packets(loaded, parts(boxes.rank) + i, chunk, boxes.rank);
  }
  // Sends to this rank as well: rows cross chunks.
  WL_DEVICE void reduce(int i, Packets& loaded) const {
    const bool complete = await_packets(loaded, parts(boxes.rank) + i, chunk, boxes, call, 0);
    const uint4 sum = complete ? sum_packets<T>(loaded) : nan_packet();
    if (boxes.rank * chunk + i >= packets) return;  // nobody takes it
#pragma unroll
    for (int hop = 1; hop <= kRanks; ++hop) send_packet(sums(peer(hop)) + boxes.rank * chunk + i, sum);
  }
};

// Every rank sums a chunk of all packets and sends it to all. With many tokens some blocks do that while others finish rows.
template <class Config>
__global__ void __launch_bounds__(Config::kThreads, 1)
    two_shot_fusion_kernel(const __grid_constant__ Mailboxes boxes, const __grid_constant__ FusionParams params) {
  using T = typename Config::T;
  using Rows = FusedRows<Config>;
  using Stages = FusedStages<T, Config::kRanks>;
  using Packets = typename Stages::Packets;
  __shared__ float scratch[2][Rows::kWarps];
  Rows rows{params, scratch};
  const int finisher = int(blockIdx.x) - params.reducers, first = int(blockIdx.x * blockDim.x + threadIdx.x);
  const int packets = int(params.tokens) * Config::kPackets, chunk = ceil_div(packets, Config::kRanks);
  Call call(kTwoShotFusion, kElement<T>, packets);
  if (!begin_call(call, boxes)) return;
  const Stages stages{boxes, call, static_cast<const uint4*>(params.input), packets, chunk};

  if (params.reducers == 0) {
    const int step = int(gridDim.x * blockDim.x);
    Packets loaded;
    for (int i = first; i < chunk; i += step) stages.load_sent(i, loaded), stages.scatter(i, loaded);
    for (int i = first; i < chunk; i += step) stages.load_parts(i, loaded), stages.reduce(i, loaded);
  } else if (finisher < 0) {
    const int warps = int(params.reducers * blockDim.x) / kWarpSize;
    run_stages<2>(call, boxes, chunk, first / kWarpSize, warps, [&](const int64_t (&at)[2]) {
      const bool scatters = at[0] < chunk, reduces = at[1] < chunk;
      constexpr bool kAhead = Config::kRanks <= 4;  // loads of both stages go ahead of the stores, if the registers allow
      Packets sent, parts;
      if (scatters) stages.load_sent(int(at[0]), sent);
      if (kAhead && reduces) stages.load_parts(int(at[1]), parts);
      if (scatters) stages.scatter(int(at[0]), sent);
      if (!kAhead && reduces) stages.load_parts(int(at[1]), parts);
      if (reduces) stages.reduce(int(at[1]), parts);
    });
    end_call(call, boxes);
    return;
  }
  const int chunk_rows = ceil_div(int(params.tokens), Config::kRanks);  // about: rows cross chunks
  uint4* const sums = stages.sums(boxes.rank);
  const auto nothing = [](int64_t, uint4 (&)[1]) {};
  const auto take = [&](int64_t place, uint4 (&sum)[1]) {
    return take_packet(sum[0], sums + place, boxes, call, uint32_t(place) / uint32_t(chunk), 1) ? sum[0] : nan_packet();
  };
  const auto look = [&](int64_t place, uint4 (&sum)[1]) { sum[0] = load_relaxed_system(sums + place); };
  const auto take_seen = [&](int64_t place, uint4 (&sum)[1]) {
    return await_packet(sum[0], sums + place, boxes, call, uint32_t(place) / uint32_t(chunk), 1) ? sum[0] : nan_packet();
  };
  if (params.reducers == 0) {
    finish_rows<1, false>(rows, finisher, gridDim.x, chunk_rows, boxes, call, nothing, take);
  } else {
    finish_rows<1, true>(rows, finisher, gridDim.x - params.reducers, chunk_rows, boxes, call, look, take_seen);
  }
}

}  // namespace warploom::comm
