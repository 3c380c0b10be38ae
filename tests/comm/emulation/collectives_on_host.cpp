// Runs the collectives' own source on host threads and checks every result.
//
//   collectives_on_host <ranks> <calls> <seed>            mixed kernels, dtypes, sizes and alignments, skewed ranks
//   collectives_on_host <ranks> <calls> <seed> missing    the last rank stops half way; prints the reports of the others
//   collectives_on_host <ranks> <calls> <seed> other      the last rank calls another thing half way; prints all reports
//   ... <kernel>                                          of one kernel only, by its number in `run_call`
#include "cuda_on_host.h"

#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>

#include "warploom/comm/all_gather.cuh"
#include "warploom/comm/all_reduce.cuh"
#include "warploom/comm/exchange.cuh"
#include "warploom/comm/fusion_fp8.cuh"
#include "warploom/comm/moe.cuh"
#include "warploom/comm/moe_direct.cuh"
#include "warploom/comm/reduce_scatter.cuh"
#include "warploom/comm/routing.cuh"

namespace warploom::comm {

constexpr int64_t kHalfBytes = 64 << 10;

template <class T_, int kRanks_>
struct Config {
  using T = T_;
  static constexpr int kRanks = kRanks_;
  static constexpr int kMaxThreads = 512;
  static constexpr bool kLong = false;
};

template <class T, int kRanks>
struct LongConfig : Config<T, kRanks> {
  static constexpr bool kLong = true;
};

struct Rank {
  std::vector<uint4> buffer;
  Report report{};
  Mailboxes boxes{};
  uint32_t launched = 0;  // calls
  std::vector<uint8_t> rows[2];  // where rows land: dispatched, returned
  Landing landings[2]{};
};

// What a rank sends in a call; NaN with all bits set among it, which is the pattern of an empty mailbox.
template <class T>
T value_of(int rank, int call, int64_t i) {
  if ((i + call) % 97 == 13) {
    T nan;
    std::memset(&nan, 0xff, sizeof nan);
    return nan;
  }
  return from_float<T>(float((i * 7 + rank * 31 + call * 13) % 1009) / 64.0f - 7.0f);
}

template <class T>
bool is_same(T value, T expected) {
  const bool both_nan = to_float(expected) != to_float(expected) && to_float(value) != to_float(value);
  return both_nan || std::memcmp(&expected, &value, sizeof(T)) == 0;
}

// Elements from `first` on of the sum of all ranks' messages.
template <class T, int kRanks>
bool is_sum(const T* output, int call, int64_t first, int64_t numel) {
  for (int64_t i = 0; i < numel; ++i) {
    float sum = to_float(value_of<T>(0, call, first + i));
    for (int rank = 1; rank < kRanks; ++rank) sum += to_float(value_of<T>(rank, call, first + i));
    const T expected = from_float<T>(sum);
    if (!is_same(output[i], expected)) {
      std::printf("call %d element %ld of %ld: %g, expected %g\n", call, long(i), long(numel), to_float(output[i]),
                  to_float(expected));
      return false;
    }
  }
  return true;
}

// What one call is, drawn alike by all ranks.
struct Draw {
  uint32_t bits;
  int only;  // kernel, or -1
  int kernel() const {
    if (only >= 0) return only;
    return bits % 64 < 8 ? 4 + bits % 64 / 2 : bits % 4;  // large ones take long here
  }
  bool in_place() const { return bits & 64; }
  int64_t offset() const { return bits & 128 ? 1 : 0; }  // elements: unaligned
  bool is_long() const { return bits >> 28 & 1; }
  bool is_float() const { return bits & 256; }
  int64_t numel(int64_t largest) const { return (bits >> 9) % 8 == 0 ? 1 : 1 + (bits >> 8) % largest; }
  unsigned blocks() const { return 1 + (bits >> 20) % 3; }
  unsigned threads() const { return kMaxRanks + (bits >> 24) % 5; }
  unsigned threads_of_stages() const { return is_long() ? 32 * (1 + (bits >> 24) % 2) : threads(); }  // whole warps take shares
};

template <class T>
std::vector<uint4> memory_for(int64_t numel) {
  return std::vector<uint4>(numel * sizeof(T) / 16 + 2);
}

template <class T, int kRanks>
bool all_reduce(Rank& rank, int call, const Draw& draw, bool two_shot) {
  const int64_t numel = draw.numel(kHalfBytes / (2 * kRanks) / int64_t(sizeof(T)) / 8);
  auto input = memory_for<T>(numel), output = input;
  T* x = reinterpret_cast<T*>(input.data()) + draw.offset();
  for (int64_t i = 0; i < numel; ++i) x[i] = value_of<T>(rank.boxes.rank, call, i);
  T* out = draw.in_place() ? x : reinterpret_cast<T*>(output.data()) + draw.offset();
  using C = Config<T, kRanks>;
  auto* kernel = two_shot ? two_shot_all_reduce_kernel<C> : one_shot_all_reduce_kernel<C>;
  if (two_shot && draw.is_long()) kernel = two_shot_all_reduce_kernel<LongConfig<T, kRanks>>;
  launch(draw.blocks(), two_shot ? draw.threads_of_stages() : draw.threads(), kernel, rank.boxes, Message{x, out, numel});
  return rank.report.failed || is_sum<T, kRanks>(out, call, 0, numel);
}

template <class T, int kRanks>
bool reduce_scatter(Rank& rank, int call, const Draw& draw) {
  const int64_t numel = draw.numel(kHalfBytes / (2 * kRanks) / int64_t(sizeof(T)) / 8), own = rank.boxes.rank * numel;
  auto input = memory_for<T>(kRanks * numel), output = memory_for<T>(numel);
  T* x = reinterpret_cast<T*>(input.data()) + draw.offset();
  for (int64_t i = 0; i < kRanks * numel; ++i) x[i] = value_of<T>(rank.boxes.rank, call, i);
  T* out = draw.in_place() ? x + own : reinterpret_cast<T*>(output.data()) + draw.offset();
  auto* kernel = draw.is_long() ? reduce_scatter_kernel<LongConfig<T, kRanks>> : reduce_scatter_kernel<Config<T, kRanks>>;
  launch(draw.blocks(), draw.threads_of_stages(), kernel, rank.boxes, Message{x, out, numel});
  return rank.report.failed || is_sum<T, kRanks>(out, call, own, numel);
}

// Any bytes, those of an empty mailbox among them.
uint8_t byte_of(int rank, int call, int64_t i) { return (i / 8 + call) % 5 == 0 ? 0xff : uint8_t(i * 7 + rank * 31 + call); }

template <int kRanks>
bool all_gather(Rank& rank, int call, const Draw& draw) {
  const int64_t bytes = draw.numel(kHalfBytes / (2 * kRanks) / 8);
  auto input = memory_for<uint8_t>(bytes), output = memory_for<uint8_t>(kRanks * bytes);
  uint8_t* x = reinterpret_cast<uint8_t*>(input.data()) + draw.offset();
  for (int64_t i = 0; i < bytes; ++i) x[i] = byte_of(rank.boxes.rank, call, i);
  uint8_t* out = reinterpret_cast<uint8_t*>(output.data()) + draw.offset();
  launch(draw.blocks(), draw.threads(), all_gather_kernel<Config<float, kRanks>>, rank.boxes, GatherParams{x, out, bytes});
  for (int64_t i = 0; i < kRanks * bytes && !rank.report.failed; ++i) {
    if (out[i] == byte_of(int(i / bytes), call, i % bytes)) continue;
    std::printf("call %d byte %ld of %ld a rank: %d\n", call, long(i), long(bytes), out[i]);
    return false;
  }
  return true;
}

template <class T_, int kRanks_>
struct FusionConfig {
  using T = T_;
  using Code = void;
  static constexpr int kRanks = kRanks_, kPackets = 40, kThreads = 32, kGroupPackets = 4;
  static constexpr bool kNormalises = true;
  static constexpr int kScalesNumber = int(Scales::kOfGroup);
};

// What is computed from the sums, of one token.
template <class T, int kColumns, int kGroup>
bool is_finished(const T* residual_in, const T* gamma, const T* output, const T* residual, const T* norm,
                 const int8_t* codes, const float* scales) {
  float squares = 0;
  for (int i = 0; i < kColumns; ++i) {
    if (!is_same(residual[i], from_float<T>(to_float(output[i]) + to_float(residual_in[i])))) return false;
    squares += to_float(residual[i]) * to_float(residual[i]);
  }
  const float factor = 1 / std::sqrt(squares / kColumns + 0.5f);
  for (int group = 0; group < kColumns / kGroup; ++group) {
    float largest = 0;
    for (int i = group * kGroup; i < (group + 1) * kGroup; ++i) {
      const float value = to_float(norm[i]), expected = to_float(residual[i]) * factor * (to_float(gamma[i]) + 1);
      if (!(std::fabs(value - expected) <= 0.01f * std::fabs(expected) + 1e-6f)) return false;
      if (!(std::fabs(codes[i] * 4 * scales[group] - value) <= 2.01f * scales[group])) return false;
      largest = std::max(largest, std::fabs(value));
    }
    if (scales[group] != largest / kLargestE4m3) return false;
  }
  return true;
}

template <class T, int kRanks>
bool fusion(Rank& rank, int call, const Draw& draw, bool two_shot) {
  using C = FusionConfig<T, kRanks>;
  constexpr int kColumns = C::kPackets * kVecWidth<T>, kGroup = C::kGroupPackets * kVecWidth<T>;
  const int64_t tokens = 1 + (draw.bits >> 12) % 5, numel = tokens * kColumns;
  const auto sent = [&](int of, int64_t i) { return from_float<T>(float((i * 7 + of * 31 + call * 13) % 1009) / 64 - 7); };
  auto input = memory_for<T>(numel), sums = input, residual = input, kept = input, added = input, norm = input;
  auto codes = memory_for<int8_t>(numel);
  std::vector<float> scales(numel / kGroup);
  const auto as = [](auto& memory) { return reinterpret_cast<T*>(memory.data()); };
  for (int64_t i = 0; i < numel; ++i) as(input)[i] = sent(rank.boxes.rank, i), as(residual)[i] = sent(9, i);
  kept = residual;
  T* out = draw.in_place() ? as(input) : as(sums);
  T* residual_out = draw.in_place() ? as(residual) : as(added);
  const FusionParams params{as(input), out,          as(residual),  residual_out, as(kept), as(norm),
                            codes.data(), scales.data(), tokens, int(two_shot ? draw.bits / 8192 % 3 : 0), 0.5f, 1.0f};
  auto* kernel = two_shot ? two_shot_fusion_kernel<C> : one_shot_fusion_kernel<C>;
  launch(unsigned(params.reducers) + 1 + draw.bits / 4096 % 2, C::kThreads, kernel, rank.boxes, params);
  if (rank.report.failed) return true;
  bool right = true;
  for (int64_t i = 0; i < numel; ++i) {
    float sum = 0;
    for (int of = 0; of < kRanks; ++of) sum += to_float(sent(of, i));
    right &= is_same(out[i], from_float<T>(sum));
  }
  const int8_t* bytes = reinterpret_cast<const int8_t*>(codes.data());
  for (int64_t token = 0; token < tokens; ++token) {
    const int64_t at = token * kColumns;
    right &= is_finished<T, kColumns, kGroup>(as(kept) + at, as(kept), out + at, residual_out + at, as(norm) + at, bytes + at,
                                              scales.data() + at / kGroup);
  }
  if (!right) std::printf("call %d: fused, %ld tokens, two-shot %d\n", call, long(tokens), two_shot);
  return right;
}

// An expert mixture: who owns what is the same for all ranks, tokens differ.
template <int kRanks>
struct Mixture {
  static constexpr int kTopK = 3, kExperts = 4 * kRanks, kMaxTokens = 80, kPayloads = 2;
  static constexpr int64_t kRowBytes[kPayloads] = {20, 8};
  int call;

  int tokens_of(int rank) const { return (call * 5 + rank * 11) % 4 == 0 ? 0 : (call * 7 + rank * 13) % kMaxTokens; }
  // Some are no expert.
  int expert(int rank, int token, int i) const { return (call * 3 + rank * 5 + token * (7 + i) + i * i) % (kExperts + 3) - 1; }
  bool goes_to(int rank, int token, int peer) const {
    for (int i = 0; i < kTopK; ++i) {
      const int chosen = expert(rank, token, i);
      if (chosen >= 0 && chosen < kExperts && chosen / (kExperts / kRanks) == peer) return true;
    }
    return false;
  }
  uint8_t byte(int rank, int payload, int token, int64_t i) const { return byte_of(rank * 3 + payload, call + token, i); }
  float result(int token_rank, int expert_rank, int place, int column) const {
    return float((call + token_rank * 7 + expert_rank * 3 + place * 5 + column) % 31) - 15;
  }
};

constexpr int kParts = 4;  // most of a row that lands

// Numbers and flags before the rows of a landing.
template <int kRanks>
constexpr int64_t kLandingHead = 128 + 8 * kRanks * Mixture<kRanks>::kMaxTokens * kParts;

template <class T_, int kRanks_>
struct WarpConfig : Config<T_, kRanks_> {
  static constexpr int kThreads = 64;
};

// Rows that came from each rank, in the order of its tokens.
template <int kRanks>
bool is_dispatched(const Mixture<kRanks>& mixture, int rank, const std::vector<uint8_t> (&received)[2], const int32_t* counts) {
  for (int from = 0; from < kRanks; ++from) {
    int place = 0;
    for (int token = 0; token < mixture.tokens_of(from); ++token) {
      if (!mixture.goes_to(from, token, rank)) continue;
      for (int payload = 0; payload < mixture.kPayloads; ++payload) {
        const int64_t bytes = mixture.kRowBytes[payload], at = (int64_t(from) * mixture.kMaxTokens + place) * bytes;
        for (int64_t i = 0; i < bytes; ++i) {
          if (received[payload][at + i] != mixture.byte(from, payload, token, i)) return false;
        }
      }
      ++place;
    }
    if (counts[from] != place) return false;
  }
  return true;
}

template <class T, int kRanks>
bool moe(Rank& rank, int call, const Draw& draw, bool direct) {
  using M = Mixture<kRanks>;
  using C = WarpConfig<T, kRanks>;
  const M mixture{call};
  const int own = rank.boxes.rank, tokens = mixture.tokens_of(own);
  std::vector<int64_t> experts(tokens * M::kTopK);
  for (int i = 0; i < tokens * M::kTopK; ++i) experts[i] = mixture.expert(own, i / M::kTopK, i % M::kTopK);
  std::vector<int32_t> slots(tokens * kRanks), sent(kRanks), counts(kRanks, -1);
  launch(1, C::kThreads, route_tokens_kernel<C>,
         RoutingParams{experts.data(), slots.data(), sent.data(), tokens, M::kTopK, M::kExperts, 2});

  DispatchParams dispatch{};
  std::vector<uint8_t> payloads[2], received[2];
  for (int payload = 0; payload < M::kPayloads; ++payload) {
    const int64_t bytes = M::kRowBytes[payload];
    payloads[payload].resize(tokens * bytes + 1), received[payload].resize(kRanks * M::kMaxTokens * bytes);
    for (int64_t i = 0; i < tokens * bytes; ++i) payloads[payload][i] = mixture.byte(own, payload, int(i / bytes), i % bytes);
    dispatch.payloads[payload] = payloads[payload].data(), dispatch.received[payload] = received[payload].data();
    dispatch.row_bytes[payload] = bytes, dispatch.row_pieces += int(ceil_div(bytes, int64_t(kPieceBytes)));
  }
  dispatch.slots = slots.data(), dispatch.sent = sent.data(), dispatch.counts = counts.data();
  dispatch.tokens = tokens, dispatch.max_tokens = M::kMaxTokens, dispatch.num_payloads = M::kPayloads;
  if (direct) {
    DirectDispatchParams params{};
    int64_t offset = kLandingHead<kRanks>;
    for (int payload = 0; payload < M::kPayloads; ++payload) {
      params.payloads[payload] = dispatch.payloads[payload], params.row_bytes[payload] = dispatch.row_bytes[payload];
      params.received[payload] = offset, offset += int64_t(received[payload].size());
    }
    params.slots = slots.data(), params.sent = sent.data(), params.counts = counts.data();
    params.tokens = tokens, params.max_tokens = M::kMaxTokens, params.num_payloads = M::kPayloads;
    params.parts = 1 + draw.bits / 4096 % kParts;
    launch(draw.blocks(), C::kThreads, direct_dispatch_kernel<C>, rank.boxes, rank.landings[0], params);
    for (int payload = 0; payload < M::kPayloads; ++payload) {
      const uint8_t* landed = rank.rows[0].data() + params.received[payload];
      received[payload].assign(landed, landed + received[payload].size());
    }
  } else {
    launch(draw.blocks(), C::kThreads, dispatch_kernel<C>, rank.boxes, dispatch);
  }
  if (rank.report.failed) return true;
  if (!is_dispatched(mixture, own, received, counts.data())) {
    std::printf("call %d: rank %d got other rows\n", call, own);
    return false;
  }

  constexpr int kPackets = 3, kColumns = kPackets * kVecWidth<T>;
  auto results = memory_for<T>(kRanks * M::kMaxTokens * kColumns), output = memory_for<T>(tokens * kColumns + 1);
  for (int64_t i = 0; i < kRanks * M::kMaxTokens * kColumns; ++i) {
    const int from = int(i / kColumns) / M::kMaxTokens, place = int(i / kColumns) % M::kMaxTokens;
    const float value = place < counts[from] ? mixture.result(from, own, place, int(i % kColumns)) : NAN;
    reinterpret_cast<T*>(results.data())[i] = from_float<T>(value);
  }
  if (direct) {
    launch(1 + draw.bits / 2048 % 3, C::kThreads, direct_combine_kernel<C>, rank.boxes, rank.landings[1],
           DirectCombineParams{results.data(), output.data(), slots.data(), counts.data(), kLandingHead<kRanks>, tokens,
                               M::kMaxTokens, kPackets, int(1 + draw.bits / 8192 % kParts)});
  } else {
    launch(1 + draw.bits / 2048 % 3, C::kThreads, combine_kernel<C>, rank.boxes,
           CombineParams{results.data(), output.data(), slots.data(), counts.data(), tokens, M::kMaxTokens, kPackets});
  }
  ++rank.launched;
  if (rank.report.failed) return true;
  int places[kRanks] = {};
  for (int token = 0; token < tokens; ++token) {
    for (int column = 0; column < kColumns; ++column) {
      float sum = 0;
      for (int peer = 0; peer < kRanks; ++peer) {
        if (mixture.goes_to(own, token, peer)) sum += mixture.result(own, peer, places[peer], column);
      }
      if (!is_same(reinterpret_cast<T*>(output.data())[token * kColumns + column], from_float<T>(sum))) {
        std::printf("call %d: token %d of rank %d is another sum\n", call, token, own);
        return false;
      }
    }
    for (int peer = 0; peer < kRanks; ++peer) places[peer] += mixture.goes_to(own, token, peer);
  }
  return true;
}

// Small rings, which messages go around many times.
template <int kRanks_>
struct ExchangeConfig {
  static constexpr int kRanks = kRanks_, kMaxThreads = 512, kChunkBytes = 512, kSlots = 2;
};

// What ranks send to each other in a call: nothing, less than a chunk, whole chunks, or many.
int64_t exchanged_bytes(int call, int from, int to) {
  uint32_t bits = uint32_t((call * 16 + from) * 16 + to) * 2654435761u;
  bits = (bits ^ bits >> 15) * 2246822519u;
  const int64_t drawn = bits >> 12;
  if (call % 4 == 2) return 0;  // of all
  switch (bits % 4) {
    case 0: return 0;
    case 1: return 1 + drawn % 40;
    case 2: return 512 * (drawn % 9);
    default: return drawn % 24'000;
  }
}

// One message behind the other in memory, 16-byte aligned or not, with a gap behind each.
struct Parts {
  std::vector<uint4> memory;
  std::vector<int64_t> first;
  int64_t end;

  Parts(const std::vector<int64_t>& bytes, bool aligned) : end(aligned ? 0 : 1) {
    for (const int64_t number : bytes) {
      if (aligned) end = (end + 15) / 16 * 16;
      first.push_back(end), end += number + 3;
    }
    memory.resize(end / 16 + 1), std::memset(data(), 0xee, end);
  }
  uint8_t* data() { return reinterpret_cast<uint8_t*>(memory.data()); }
};

template <int kRanks>
bool exchange(Rank& rank, int call, const Draw& draw) {
  const int own = rank.boxes.rank;
  std::vector<int64_t> sent, received;
  for (int peer = 0; peer < kRanks; ++peer) {
    sent.push_back(exchanged_bytes(call, own, peer)), received.push_back(exchanged_bytes(call, peer, own));
  }
  Parts inputs(sent, draw.in_place()), outputs(received, draw.offset() == 0);
  ExchangeParams params{};
  for (int peer = 0; peer < kRanks; ++peer) {
    uint8_t* input = inputs.data() + inputs.first[peer];
    for (int64_t i = 0; i < sent[peer]; ++i) input[i] = byte_of(own * kRanks + peer, call, i);
    params.inputs[peer] = input, params.sent_bytes[peer] = sent[peer];
    params.outputs[peer] = outputs.data() + outputs.first[peer], params.received_bytes[peer] = received[peer];
  }
  const unsigned blocks = draw.blocks(), pairs = (kRanks - 2 + blocks) / blocks + draw.threads() % 2;  // of warps
  launch(blocks, 64 * pairs, exchange_kernel<ExchangeConfig<kRanks>>, rank.boxes, params);

  std::vector<uint8_t> expected(outputs.end, 0xee);
  for (int peer = 0; peer < kRanks; ++peer) {
    for (int64_t i = 0; i < received[peer]; ++i) expected[outputs.first[peer] + i] = byte_of(peer * kRanks + own, call, i);
  }
  for (int64_t i = 0; i < outputs.end; ++i) {
    const uint8_t byte = outputs.data()[i];
    if (byte == expected[i] || (rank.report.failed && byte == 0xff)) continue;  // what a missing rank did not send
    std::printf("call %d: rank %d got another byte\n", call, own);
    return false;
  }
  return true;
}

template <class T, int kRanks>
bool run_call(Rank& rank, int call, const Draw& draw) {
  switch (draw.kernel()) {
    case 0: return all_reduce<T, kRanks>(rank, call, draw, false);
    case 1: return all_reduce<T, kRanks>(rank, call, draw, true);
    case 2: return reduce_scatter<T, kRanks>(rank, call, draw);
    case 3: return all_gather<kRanks>(rank, call, draw);
    case 4: return fusion<T, kRanks>(rank, call, draw, false);
    case 5: return fusion<T, kRanks>(rank, call, draw, true);
    case 6: return moe<T, kRanks>(rank, call, draw, draw.bits / 1024 % 2);
    default: return exchange<kRanks>(rank, call, draw);
  }
}

template <int kRanks>
int run(int calls, uint32_t seed, bool missing, bool other, int only) {
  using E = ExchangeConfig<kRanks>;
  constexpr int64_t kStaging = kMaxChannels * (kCounters * kCounterBytes + E::kSlots * E::kChunkBytes);
  std::vector<Rank> ranks(kRanks);
  for (Rank& rank : ranks) {
    rank.buffer.assign((kHeaderBytes + 2 * kHalfBytes) / 16, make_uint4(kEmpty, kEmpty, kEmpty, kEmpty));
    std::memset(rank.buffer.data(), 0, kHeaderBytes);
    for (auto& rows : rank.rows) rows.resize(kLandingHead<kRanks> + kRanks * Mixture<kRanks>::kMaxTokens * 64);
    const size_t mailboxes = rank.buffer.size();
    rank.buffer.resize(mailboxes + kStaging / 16);
    uint32_t* counters = reinterpret_cast<uint32_t*>(&rank.buffer[mailboxes]);
    std::fill_n(counters, kCounters * kMaxChannels * kCounterBytes / 4, uint32_t(-20));  // they pass 2^32
  }
  std::atomic<int> wrong = 0;
  {
    std::vector<std::jthread> streams;
    for (int r = 0; r < kRanks; ++r) {
      Mailboxes& boxes = ranks[r].boxes;
      for (int peer = 0; peer < kRanks; ++peer) {
        boxes.buffers[peer] = reinterpret_cast<uint8_t*>(ranks[peer].buffer.data());
      }
      for (int which = 0; which < 2; ++which) {
        Landing& landing = ranks[r].landings[which];
        landing.flags = 128, landing.capacity = Mixture<kRanks>::kMaxTokens, landing.parts = kParts;
        for (int peer = 0; peer < kRanks; ++peer) landing.buffers[peer] = ranks[peer].rows[which].data();
      }
      boxes.report = &ranks[r].report, boxes.rank = r, boxes.half_bytes = kHalfBytes;
      boxes.timeout_ns = missing || other ? 200'000'000 : 60'000'000'000;
      streams.emplace_back([&, r] {
        std::mt19937 shared(seed), own(seed * 100 + r);  // ranks agree on the calls, not on when they come
        for (int call = 0; call < calls && wrong == 0; ++call) {
          const bool strays = r == kRanks - 1 && call == calls / 2;
          if (missing && strays) return;
          if (own() % 8 == 0) std::this_thread::sleep_for(std::chrono::microseconds(own() % 2000));
          Draw draw{uint32_t(shared()), only};
          if (other && call >= calls / 2) draw.bits = strays ? 256 + 2 : 256;  // fused in two trips instead of one
          const bool right = draw.is_float() ? run_call<float, kRanks>(ranks[r], call, draw)
                                             : run_call<HostBf16, kRanks>(ranks[r], call, draw);
          ++ranks[r].launched;
          if (!right) ++wrong;
          if (ranks[r].report.failed) return;
        }
      });
    }
  }
  for (int r = 0; r < kRanks && (missing || other); ++r) {
    const Report& report = ranks[r].report;
    std::printf("rank %d failed %u call %u peer %u aborted_by %u own %lu others %lu\n", r, report.failed, report.call,
                report.peer, report.aborted_by, (unsigned long)report.own, (unsigned long)report.others);
  }
  for (const Rank& rank : ranks) {
    const uint32_t counted = reinterpret_cast<const Header*>(rank.buffer.data())->calls[kMaxBlocks - 1];
    if (!missing && !other && (rank.report.failed || counted != rank.launched || counted < uint32_t(calls))) ++wrong;
  }
  return wrong != 0;
}

}  // namespace warploom::comm

int main(int argc, char** argv) {
  const int ranks = std::atoi(argv[1]), calls = std::atoi(argv[2]);
  const unsigned seed = std::atoi(argv[3]);
  const std::string fault = argc > 4 ? argv[4] : "";
  const bool missing = fault == "missing", other = fault == "other";
  const int only = argc > 5 ? std::atoi(argv[5]) : -1;
  switch (ranks) {
    case 2: return warploom::comm::run<2>(calls, seed, missing, other, only);
    case 3: return warploom::comm::run<3>(calls, seed, missing, other, only);
    case 4: return warploom::comm::run<4>(calls, seed, missing, other, only);
    case 8: return warploom::comm::run<8>(calls, seed, missing, other, only);
    default: return 2;
  }
}
