// The products of a tile, by a warpgroup: sums in registers over steps of k whose operands lie in shared memory.
#pragma once

#include "warploom/cluster_async.cuh"
#include "warploom/gemm/gemm_config.cuh"
#include "warploom/sync.cuh"
#include "warploom/wgmma.cuh"

namespace warploom::gemm {

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

// Of each wave of 64 rows, as wgmma has them.
template <class Config>
struct TileSums {
  static constexpr int kBlocks = Config::kColumns / 8;
  float of[Config::kWaves][kBlocks][4];

  WL_DEVICE void clear() {
#pragma unroll
    for (int wave = 0; wave < Config::kWaves; ++wave) {
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
        for (int i = 0; i < 4; ++i) of[wave][block][i] = 0.f;
      }
    }
  }
};

template <class Config>
struct TileProducts {
  using Storage = GemmStorage<Config>;
  using In = typename Config::In;
  using Sums = TileSums<Config>;
  static constexpr int kBlocks = Sums::kBlocks;
  using Product = Wgmma<In, kBlocks>;
  static constexpr int kSteps = Config::kDepth / Product::kDepth;  // products of a span
  // From one to the next: 32 bytes on in a row, or as many rows on if operands are turned.
  static constexpr int kRowsOnwards = Config::kRowsTurned ? Product::kDepth * Config::kSpan : 32;
  static constexpr int kColumnsOnwards = Config::kColumnsTurned ? Product::kDepth * Config::kSpan : 32;

  // Beside 0, which is that of all threads: of each warpgroup, when it is its turn.
  static constexpr int kTurnBarrier = 1;

  Storage& storage;
  uint8_t* memory;
  RingPlace<Config::kStages> place;

  // By each warpgroup, once.
  WL_DEVICE void open() const {
    if (Config::kTakesTurns && group() == 1) give_turn();
  }

  WL_DEVICE void run(Sums& sums, int steps) {
    if constexpr (Config::kPromotes) {
      run_promoted(sums, steps);
    } else {
      run_plain(sums, steps);
    }
  }

 private:
  static constexpr int kGroupBytes = Config::kWaves * Warpgroup::kRows * Config::kSpan;
  WL_DEVICE static int group() { return Warpgroup::number() - 1; }

  WL_DEVICE void multiply(float (&sums)[kBlocks][4], int wave, bool adds) {
    const uint8_t* rows = Storage::rows(memory, place.stage()) + group() * kGroupBytes + wave * Warpgroup::kRows * Config::kSpan;
    const uint8_t* columns = Storage::columns(memory, place.stage());
    const uint32_t a = Config::kRowsTurned ? wgmma_columns(rows, Warpgroup::kRows * Config::kSpan) : wgmma_rows(rows);
    const uint32_t b =
        Config::kColumnsTurned ? wgmma_columns(columns, Config::kDepth * Config::kSpan) : wgmma_rows(columns);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      Product::template run<Config::kRowsTurned, Config::kColumnsTurned>(
          sums, wgmma_onwards(a, step * kRowsOnwards), wgmma_onwards(b, step * kColumnsOnwards), adds || step > 0);
    }
  }

  // One warpgroup's products queue behind the other's, so that they end one after the other: then one adds while the other's run.
  WL_DEVICE static void wait_for_turn() {
    if constexpr (Config::kTakesTurns) sync_threads_of(kTurnBarrier + group(), 2 * Warpgroup::kThreads);
  }
  WL_DEVICE static void give_turn() {
    if constexpr (Config::kTakesTurns) arrive_for_threads_of(kTurnBarrier + 1 - group(), 2 * Warpgroup::kThreads);
  }

  WL_DEVICE void release(const RingPlace<Config::kStages>& read) {
    if constexpr (Config::kCluster == 1) {
      storage.ring.release(read);
    } else {
      __syncwarp();
      if (lane_id() < Config::kCluster) mbarrier_arrive_at(&storage.ring.free[read.stage()], lane_id());
    }
  }

  // One span's products run while the next's are issued.
  WL_DEVICE void run_plain(Sums& sums, int steps) {
#pragma unroll 1
    for (int step = 0; step < steps; ++step, place.next()) {
      storage.ring.wait_full(place, false);
      wgmma_fence();
#pragma unroll
      for (int wave = 0; wave < Config::kWaves; ++wave) multiply(sums.of[wave], wave, step > 0);
      wgmma_commit();
      if (step > 0) {
        wgmma_wait<1>();
        release(place.before());
      }
    }
    wgmma_wait<0>();
#pragma unroll
    for (int wave = 0; wave < Config::kWaves; ++wave) wgmma_done(sums.of[wave]);
    release(place.before());
  }

  // A span's sums join the others, times their scales; meanwhile the other warpgroup's products run.
  WL_DEVICE void run_promoted(Sums& sums, int steps) {
    float span[kBlocks][4];
    sums.clear();
#pragma unroll 1
    for (int step = 0; step < steps; ++step, place.next()) {
      storage.ring.wait_full(place, false);
#pragma unroll
      for (int wave = 0; wave < Config::kWaves; ++wave) {
        wait_for_turn();
        wgmma_fence();
        multiply(span, wave, false);
        wgmma_commit();
        give_turn();
        float row_scales[2];
        load_row_scales(row_scales, wave);
        if constexpr (Config::kColumnScales == 1) {
          wgmma_wait<0>();
          wgmma_done(span);
          if (wave == Config::kWaves - 1) release(place);
          add(sums.of[wave], span, row_scales);
        } else {
          float column_scales[kBlocks][2];
          load_column_scales(column_scales);
          wgmma_wait<0>();
          wgmma_done(span);
          if (wave == Config::kWaves - 1) release(place);
          add(sums.of[wave], span, row_scales, column_scales);
        }
      }
    }
  }

  // Of a lane's two rows; what all columns share is in them.
  WL_DEVICE void load_row_scales(float (&scales)[2], int wave) const {
    if constexpr (Config::kHasBlocks) {
      const auto& stage = storage.scales[place.stage()];
      const int row = (group() * Config::kWaves + wave) * Warpgroup::kRows + Warpgroup::warp() * 16 + lane_id() / 4;
      const float shared = Config::kColumnScales == 1 ? stage.of_columns[0] : 1.f;
      scales[0] = stage.of_rows[row] * shared, scales[1] = stage.of_rows[row + 8] * shared;
    } else {
      scales[0] = scales[1] = 1.f;
    }
  }
  WL_DEVICE void load_column_scales(float (&scales)[kBlocks][2]) const {
    if constexpr (Config::kHasBlocks) {
      const float* of_columns = storage.scales[place.stage()].of_columns;
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        const float2 pair = *reinterpret_cast<const float2*>(of_columns + block * 8 + lane_id() % 4 * 2);
        scales[block][0] = pair.x, scales[block][1] = pair.y;
      }
    }
  }

  WL_DEVICE static void add(float (&sums)[kBlocks][4], const float (&span)[kBlocks][4], const float (&row_scales)[2]) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sums[block][i] = Config::kHasBlocks ? fmaf(span[block][i], row_scales[i / 2], sums[block][i]) : sums[block][i] + span[block][i];
      }
    }
  }
  WL_DEVICE static void add(float (&sums)[kBlocks][4], const float (&span)[kBlocks][4], const float (&row_scales)[2],
                            const float (&column_scales)[kBlocks][2]) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        sums[block][i] = fmaf(span[block][i], row_scales[i / 2] * column_scales[block][i % 2], sums[block][i]);
      }
    }
  }
};

#endif

}  // namespace warploom::gemm
