// The products of a tile, by a warpgroup: sums in registers over steps of k whose operands lie in shared memory.
#pragma once

#include "warploom/cluster_async.cuh"
#include "warploom/gemm/gemm_config.cuh"
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
  static constexpr int kWaves = Config::kWaves;
  using Product = Wgmma<In, kBlocks>;
  static constexpr int kSteps = Config::kDepth / Product::kDepth;  // products of a span
  // From one to the next: 32 bytes on in a row, or as many rows on if operands are turned.
  static constexpr int kRowsOnwards = Config::kRowsTurned ? Product::kDepth * Config::kSpan : 32;
  static constexpr int kColumnsOnwards = Config::kColumnsTurned ? Product::kDepth * Config::kSpan : 32;
  static constexpr int kWaveBytes = Warpgroup::kRows * Config::kSpan;

  // Addresses are worked out once: chains of scalars between products are what tensor cores would wait for.
  uint32_t full, free;        // barriers of the first stage; `free` in the block that this lane tells
  uint32_t rows, columns;     // operands of the first stage, this warpgroup's rows
  uint32_t row_scales, column_scales;  // of the first stage, this lane's
  RingPlace<Config::kStages> place;

  WL_DEVICE TileProducts(const Storage& storage, uint8_t* memory) {
    const uint8_t* of_rows = Storage::rows(memory, 0) + group() * kWaves * kWaveBytes;
    const uint8_t* of_columns = Storage::columns(memory, 0);
    rows = wgmma_uniform(Config::kRowsTurned ? wgmma_columns(of_rows, kWaveBytes) : wgmma_rows(of_rows));
    columns = wgmma_uniform(Config::kColumnsTurned ? wgmma_columns(of_columns, Config::kDepth * Config::kSpan) : wgmma_rows(of_columns));
    full = wgmma_uniform(shared_address(&storage.ring.full[0]));
    free = Config::kCluster == 1 ? wgmma_uniform(shared_address(&storage.ring.free[0]))
                                 : map_to_rank(&storage.ring.free[0], lane_id() % Config::kCluster);
    if constexpr (Config::kHasBlocks) {
      const int row = group() * kWaves * Warpgroup::kRows + Warpgroup::warp() * 16 + lane_id() / 4;
      row_scales = shared_address(&storage.scales[0].of_rows[row]);
      column_scales = shared_address(&storage.scales[0].of_columns[Config::kColumnScales == 1 ? 0 : lane_id() % 4 * 2]);
    }
  }

  // What tile the next steps belong to, which came with the first of them. Sums leave no registers for it.
  WL_DEVICE void next_tile(Tile& tile, const Storage& storage) const {
    __syncwarp();
    wait_full();
    constexpr int kWords = sizeof(Tile) / sizeof(int);
    const Tile& copied = storage.copied_tiles[place.stage()];
    if (lane_id() < kWords) reinterpret_cast<int*>(&tile)[lane_id()] = reinterpret_cast<const int*>(&copied)[lane_id()];
  }

  WL_DEVICE void run(Sums& sums, int steps) {
    if constexpr (Config::kTwoSpans) {
      run_promoted_in_pairs(sums, steps);
    } else if constexpr (Config::kPromotes) {
      run_promoted(sums, steps);
    } else {
      run_plain(sums, steps);
    }
  }

 private:
  WL_DEVICE static int group() { return Warpgroup::number() - 1; }

  WL_DEVICE void multiply(float (&sums)[kBlocks][4], int wave, bool adds) const {
    const uint32_t a = wgmma_onwards(rows, place.stage() * Config::kStageBytes + wave * kWaveBytes);
    const uint32_t b = wgmma_onwards(columns, place.stage() * Config::kStageBytes);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      Product::template run<Config::kRowsTurned, Config::kColumnsTurned>(
          sums, wgmma_onwards(a, step * kRowsOnwards), wgmma_onwards(b, step * kColumnsOnwards), adds || step > 0);
    }
  }

  WL_DEVICE void wait_full() const {
    mbarrier_wait(full + place.stage() * int(sizeof(uint64_t)), place.parity());
    if constexpr (Config::kGathers) fence_async_proxy();  // threads have written
  }
  WL_DEVICE void release(const RingPlace<Config::kStages>& read) const {
    __syncwarp();
    if (lane_id() < Config::kCluster) mbarrier_arrive_at(free + read.stage() * int(sizeof(uint64_t)));
  }

  // One span's products run while the next's are issued.
  WL_DEVICE void run_plain(Sums& sums, int steps) {
    multiply_span(sums, false);
#pragma unroll 1
    for (int step = 1; step < steps; ++step) {
      multiply_span(sums, true);
      wgmma_wait<1>();
      release(place.before().before());
    }
    wgmma_wait<0>();
#pragma unroll
    for (int wave = 0; wave < kWaves; ++wave) wgmma_done(sums.of[wave]);
    release(place.before());
  }
  WL_DEVICE void multiply_span(Sums& sums, bool adds) {
    wait_full();
    wgmma_fence();
#pragma unroll
    for (int wave = 0; wave < kWaves; ++wave) multiply(sums.of[wave], wave, adds);
    wgmma_commit();
    place.next();
  }

  // A span's sums join the others, times their scales; meanwhile the other warpgroup's products run. Registers hold one wave's.
  WL_DEVICE void run_promoted(Sums& sums, int steps) {
    float span[kBlocks][4];
    sums.clear();
#pragma unroll 1
    for (int step = 0; step < steps; ++step, place.next()) {
      wait_full();
      SpanScales scales;
      scales.load(row_scales + place.stage() * kScalesPitch, column_scales + place.stage() * kScalesPitch);
#pragma unroll
      for (int wave = 0; wave < kWaves; ++wave) {
        wgmma_fence();
        multiply(span, wave, false);
        wgmma_commit();
        wgmma_wait<0>();
        wgmma_done(span);
        if (wave == kWaves - 1) release(place);
        scales.add(sums.of[wave], span, wave);
      }
    }
  }

  // The same with the next span's products under way.
  WL_DEVICE void run_promoted_in_pairs(Sums& sums, int steps) {
    float even[kBlocks][4], odd[kBlocks][4];
    sums.clear();
    issue(even);
#pragma unroll 1
    for (; steps > 2; steps -= 2) {
      issue(odd);
      finish<1>(sums, even);
      issue(even);
      finish<1>(sums, odd);
    }
    if (steps == 2) {
      issue(odd);
      finish<1>(sums, even);
      finish<0>(sums, odd);
    } else {
      finish<0>(sums, even);
    }
  }
  WL_DEVICE void issue(float (&span)[kBlocks][4]) {
    wait_full();
    wgmma_fence();
    multiply(span, 0, false);
    wgmma_commit();
    place.next();
  }
  template <int kPending>
  WL_DEVICE void finish(Sums& sums, float (&span)[kBlocks][4]) const {
    RingPlace<Config::kStages> read = place.before();
    if (kPending == 1) read = read.before();
    SpanScales scales;
    scales.load(row_scales + read.stage() * kScalesPitch, column_scales + read.stage() * kScalesPitch);
    wgmma_wait<kPending>();
    wgmma_done(span);
    release(read);
    scales.add(sums.of[0], span, 0);
  }

  static constexpr int kScalesPitch = int(sizeof(typename Storage::Scales));

  // Of a span: of a lane's two rows in each wave, and of its columns if they don't share one.
  struct SpanScales {
    static constexpr bool kHasColumns = Config::kColumnScales > 1;
    float of_rows[kWaves][2];
    float of_columns[kHasColumns ? kBlocks : 1][2];

    WL_DEVICE void load(uint32_t rows, uint32_t columns) {
      if constexpr (Config::kHasBlocks) {
        const float shared = kHasColumns ? 1.f : load_shared(columns);
#pragma unroll
        for (int wave = 0; wave < kWaves; ++wave) {
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            of_rows[wave][i] = load_shared(rows + (wave * Warpgroup::kRows + i * 8) * int(sizeof(float)));
            if constexpr (!kHasColumns) of_rows[wave][i] *= shared;
          }
        }
        if constexpr (kHasColumns) {
#pragma unroll
          for (int block = 0; block < kBlocks; ++block) load_shared(of_columns[block], columns + block * 8 * int(sizeof(float)));
        }
      }
    }

    WL_DEVICE void add(float (&sums)[kBlocks][4], const float (&span)[kBlocks][4], int wave) const {
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if constexpr (!Config::kHasBlocks) {
            sums[block][i] += span[block][i];
          } else if constexpr (!kHasColumns) {
            sums[block][i] = fmaf(span[block][i], of_rows[wave][i / 2], sums[block][i]);
          } else {
            sums[block][i] = fmaf(span[block][i], of_rows[wave][i / 2] * of_columns[block][i % 2], sums[block][i]);
          }
        }
      }
    }
  };
};

#endif

}  // namespace warploom::gemm
