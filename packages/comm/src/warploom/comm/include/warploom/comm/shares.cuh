// Work of a call, dealt to warps as they come for more. NVLink serves some multiprocessors faster than others: of shares dealt
// out beforehand the slow ones would still send theirs, and not fill the links, when the fast have long finished.
//
// Why ranks that wait for each other's shares go on: a warp takes and asks for shares in rising order and sends one before it
// waits for an earlier one. So what a warp waits for is held up, if at all, by one that waits for a still earlier share.
#pragma once

#include "warploom/comm/call.cuh"

namespace warploom::comm {

class Shares {
  uint32_t* const taken_;
  const uint32_t count_, takers_;
  uint32_t next_;  // of the first lane

 public:
  // For one of so many warps, whose first shares are those of their numbers.
  WL_DEVICE Shares(const Call& call, const Mailboxes& boxes, Queue queue, int64_t count, int taker, int takers)
      : taken_(&boxes.header(boxes.rank)->shares[call.number & 1][queue]), count_(uint32_t(count)), takers_(takers),
        next_(taker) {}

  WL_DEVICE uint32_t count() const { return count_; }

  // The next share, by all lanes; from `count` on there are none. The one after is asked for, and comes during the work. Where
  // each has one or two, they are dealt out in turn: to ask would take longer than it saves.
  WL_DEVICE uint32_t take() {
    const uint32_t share = __shfl_sync(kFullMask, next_, 0);
    if (count_ <= 2 * takers_) {
      next_ += takers_;
    } else if (lane_id() == 0) {
      next_ = takers_ + atomicAdd(taken_, 1u);
    }
    return share;
  }
};

// Iterations of a warp from one stage of a reduction to the next, in long messages: the stages overlap, NVLink always has
// packets to carry, and what has arrived is taken while it is in the L2. In short ones a stage waits for the end of the one
// before, which takes less code: every instruction is fetched once.
constexpr int kLag = 2;

// Take packets through so many stages that overlap: `work` is given the packet that each is to work on, from `packets` on
// none. By whole warps: `taker` of `takers`.
template <int kStages, class Work>
WL_DEVICE void run_stages(const Call& call, const Mailboxes& boxes, int64_t packets, int taker, int takers, Work work) {
  constexpr int kAges = (kStages - 1) * kLag;
  Shares shares(call, boxes, kSending, ceil_div(packets, int64_t(kWarpSize)), taker, takers);
  uint32_t taken[kAges + 1];  // the last one, and those before it
#pragma unroll
  for (uint32_t& share : taken) share = shares.count();
  for (int ended = 0; ended < kAges; ended += taken[0] >= shares.count()) {
#pragma unroll
    for (int age = kAges; age > 0; --age) taken[age] = taken[age - 1];
    if (ended == 0) taken[0] = shares.take();
    int64_t at[kStages];
#pragma unroll
    for (int stage = 0; stage < kStages; ++stage) at[stage] = int64_t(taken[stage * kLag]) * kWarpSize + lane_id();
    work(at);
  }
}

}  // namespace warploom::comm
