// Runs the collectives' own source on host threads and checks every result.
//
//   collectives_on_host <ranks> <calls> <seed>            mixed kernels, dtypes, sizes and alignments, skewed ranks
//   collectives_on_host <ranks> <calls> <seed> missing    the last rank stops half way; prints the reports of the others
#include "cuda_on_host.h"

#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>

#include "warploom/comm/all_gather.cuh"
#include "warploom/comm/all_reduce.cuh"
#include "warploom/comm/reduce_scatter.cuh"

namespace warploom::comm {

constexpr int64_t kHalfBytes = 64 << 10;

template <class T_, int kRanks_>
struct Config {
  using T = T_;
  static constexpr int kRanks = kRanks_;
  static constexpr int kMaxThreads = 512;
};

struct Rank {
  std::vector<uint4> buffer;
  Report report{};
  Mailboxes boxes{};
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
  int kernel() const { return bits % 4; }
  bool in_place() const { return bits & 4; }
  int64_t offset() const { return bits & 8 ? 1 : 0; }  // elements: unaligned
  bool is_float() const { return bits & 16; }
  int64_t numel(int64_t largest) const { return (bits >> 5) % 8 == 0 ? 1 : 1 + (bits >> 8) % largest; }
  unsigned blocks() const { return 1 + (bits >> 20) % 3; }
  unsigned threads() const { return 1 + (bits >> 24) % 5; }
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
  launch(draw.blocks(), draw.threads(), kernel, rank.boxes, Message{x, out, numel});
  return rank.report.failed || is_sum<T, kRanks>(out, call, 0, numel);
}

template <class T, int kRanks>
bool reduce_scatter(Rank& rank, int call, const Draw& draw) {
  const int64_t numel = draw.numel(kHalfBytes / (2 * kRanks) / int64_t(sizeof(T)) / 8), own = rank.boxes.rank * numel;
  auto input = memory_for<T>(kRanks * numel), output = memory_for<T>(numel);
  T* x = reinterpret_cast<T*>(input.data()) + draw.offset();
  for (int64_t i = 0; i < kRanks * numel; ++i) x[i] = value_of<T>(rank.boxes.rank, call, i);
  T* out = draw.in_place() ? x + own : reinterpret_cast<T*>(output.data()) + draw.offset();
  launch(draw.blocks(), draw.threads(), reduce_scatter_kernel<Config<T, kRanks>>, rank.boxes, Message{x, out, numel});
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

template <class T, int kRanks>
bool run_call(Rank& rank, int call, const Draw& draw) {
  switch (draw.kernel()) {
    case 0: return all_reduce<T, kRanks>(rank, call, draw, false);
    case 1: return all_reduce<T, kRanks>(rank, call, draw, true);
    case 2: return reduce_scatter<T, kRanks>(rank, call, draw);
    default: return all_gather<kRanks>(rank, call, draw);
  }
}

template <int kRanks>
int run(int calls, uint32_t seed, bool missing) {
  std::vector<Rank> ranks(kRanks);
  for (Rank& rank : ranks) {
    rank.buffer.assign((kHeaderBytes + 2 * kHalfBytes) / 16, make_uint4(kEmpty, kEmpty, kEmpty, kEmpty));
    std::memset(rank.buffer.data(), 0, kHeaderBytes);
  }
  std::atomic<int> wrong = 0;
  {
    std::vector<std::jthread> streams;
    for (int r = 0; r < kRanks; ++r) {
      Mailboxes& boxes = ranks[r].boxes;
      for (int peer = 0; peer < kRanks; ++peer) {
        boxes.buffers[peer] = reinterpret_cast<uint8_t*>(ranks[peer].buffer.data());
      }
      boxes.report = &ranks[r].report, boxes.rank = r, boxes.half_bytes = kHalfBytes;
      boxes.timeout_ns = missing ? 200'000'000 : 60'000'000'000;
      streams.emplace_back([&, r] {
        std::mt19937 shared(seed), own(seed * 100 + r);  // ranks agree on the calls, not on when they come
        for (int call = 0; call < calls && wrong == 0; ++call) {
          if (missing && r == kRanks - 1 && call == calls / 2) return;
          if (own() % 8 == 0) std::this_thread::sleep_for(std::chrono::microseconds(own() % 2000));
          const Draw draw{uint32_t(shared())};
          const bool right = draw.is_float() ? run_call<float, kRanks>(ranks[r], call, draw)
                                             : run_call<HostBf16, kRanks>(ranks[r], call, draw);
          if (!right) ++wrong;
          if (ranks[r].report.failed) return;
        }
      });
    }
  }
  for (int r = 0; r < kRanks && missing; ++r) {
    const Report& report = ranks[r].report;
    std::printf("rank %d failed %u call %u peer %u aborted_by %u\n", r, report.failed, report.call, report.peer,
                report.aborted_by);
  }
  for (const Rank& rank : ranks) {
    const uint32_t counted = reinterpret_cast<const Header*>(rank.buffer.data())->calls[kMaxBlocks - 1];
    if (!missing && counted != uint32_t(calls)) ++wrong;
  }
  return wrong != 0;
}

}  // namespace warploom::comm

int main(int argc, char** argv) {
  const int ranks = std::atoi(argv[1]), calls = std::atoi(argv[2]);
  const unsigned seed = std::atoi(argv[3]);
  const bool missing = argc > 4 && std::string(argv[4]) == "missing";
  switch (ranks) {
    case 2: return warploom::comm::run<2>(calls, seed, missing);
    case 3: return warploom::comm::run<3>(calls, seed, missing);
    case 4: return warploom::comm::run<4>(calls, seed, missing);
    default: return 2;
  }
}
