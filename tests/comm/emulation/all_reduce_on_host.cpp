// Runs the all-reduce kernels' own source on host threads and checks every result.
//
//   all_reduce_on_host <ranks> <calls> <seed>            mixed kernels, dtypes, sizes and alignments, skewed ranks
//   all_reduce_on_host <ranks> <calls> <seed> missing    the last rank stops half way; prints the reports of the others
#include "cuda_on_host.h"

#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>

#include "warploom/comm/all_reduce.cuh"

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

template <class T, int kRanks>
bool is_right(const T* output, int call, int64_t numel) {
  for (int64_t i = 0; i < numel; ++i) {
    float sum = to_float(value_of<T>(0, call, i));
    for (int rank = 1; rank < kRanks; ++rank) sum += to_float(value_of<T>(rank, call, i));
    const T expected = from_float<T>(sum);
    const bool both_nan = to_float(expected) != to_float(expected) && to_float(output[i]) != to_float(output[i]);
    if (!both_nan && std::memcmp(&expected, &output[i], sizeof(T)) != 0) {
      std::printf("call %d element %ld of %ld: %g, expected %g\n", call, long(i), long(numel), to_float(output[i]),
                  to_float(expected));
      return false;
    }
  }
  return true;
}

template <class T, int kRanks>
bool run_call(Rank& rank, int call, uint32_t draw) {
  const bool two_shot = draw & 1, in_place = draw & 2, one_element = (draw >> 4) % 8 == 0;
  const int64_t offset = draw & 4 ? 1 : 0;  // elements: unaligned
  const int64_t largest = kHalfBytes / (2 * kRanks) / int64_t(sizeof(T)) / 8;
  const int64_t numel = one_element ? 1 : 1 + (draw >> 8) % largest;
  std::vector<uint4> input(numel * sizeof(T) / 16 + 2), output(input.size());
  T* x = reinterpret_cast<T*>(input.data()) + offset;
  for (int64_t i = 0; i < numel; ++i) x[i] = value_of<T>(rank.boxes.rank, call, i);
  T* out = in_place ? x : reinterpret_cast<T*>(output.data()) + offset;
  const AllReduceParams params{x, out, numel};
  const unsigned blocks = 1 + (draw >> 20) % 3, threads = 1 + (draw >> 24) % 5;
  using C = Config<T, kRanks>;
  auto* kernel = two_shot ? two_shot_all_reduce_kernel<C> : one_shot_all_reduce_kernel<C>;
  launch(blocks, threads, kernel, rank.boxes, params);
  return rank.report.failed || is_right<T, kRanks>(out, call, numel);
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
          const uint32_t draw = shared();
          const bool right = draw & 8 ? run_call<float, kRanks>(ranks[r], call, draw)
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
