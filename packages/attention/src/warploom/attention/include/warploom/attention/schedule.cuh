// The work of a batch, divided evenly among persistent blocks, by a kernel: nothing of it is known on the host.
//
// An item is a tile of one request's query rows with one key-value head. It counts one unit, and one for each tile of keys that
// it sees. Items lie end to end, by request, head and tile, and every block takes as many units of that line as the others: an
// item may be shared by several blocks, whose results are merged. `schedule.py` is the same in numpy.
#pragma once

#include "warploom/reduce.cuh"

namespace warploom::attention {

constexpr int kTileKeys = 64;
// Rows of query tiles. Query heads of a group are rows: row = query * group_size + head in the group.
constexpr int kNarrowRows = 16;
constexpr int kWideRows = 64;

// Where a block's work begins: an item, and `offset` units into it; and how many units it has.
struct WorkStart {
  int request;
  int head;
  int tile;
  int offset;
  int units;
  int unused;
  int64_t chunk;  // units of every block but the last; 0 where items are never shared
};

struct ScheduleParams {
  const int* qo_indptr;  // [batch + 1]
  const int* kv_lens;    // [batch]
  int64_t* unit_indptr;  // [batch + 1], scratch
  WorkStart* starts;     // [blocks]
  int batch;
  int num_kv_heads;
  int group_size;
  int causal;
  int window_left;  // -1: none
  int has_wide;     // the kernel has tiles of kWideRows
  int blocks;
  int min_chunk;
  int whole_items;  // items are never shared
};

// The query tiles of a request.
struct RequestWork {
  int qo_start;
  int qo_len;
  int kv_len;
  int group_size;
  int tile_rows;
  int tiles;

  template <class Params>
  WL_DEVICE static RequestWork of(const Params& params, int request, bool has_wide) {
    RequestWork work;
    work.qo_start = params.qo_indptr[request];
    work.qo_len = params.qo_indptr[request + 1] - work.qo_start;
    work.kv_len = params.kv_lens[request];
    work.group_size = params.group_size;
    const int rows = work.qo_len * params.group_size;
    work.tile_rows = has_wide && rows > kNarrowRows ? kWideRows : kNarrowRows;
    work.tiles = ceil_div(max(rows, 0), work.tile_rows);
    return work;
  }

  // Position of the request's first query among its keys: queries are their tail.
  WL_DEVICE int first_position() const { return kv_len - qo_len; }
  WL_DEVICE int first_query(int tile) const { return tile * tile_rows / group_size; }
  WL_DEVICE int last_query(int tile) const { return min(((tile + 1) * tile_rows - 1) / group_size, qo_len - 1); }

  // Tiles of keys from `first_keys` to `end_keys` are what a query tile can see.
  WL_DEVICE int first_keys(int tile, int window_left) const {
    return window_left < 0 ? 0 : max(first_query(tile) + first_position() - window_left, 0) / kTileKeys;
  }
  WL_DEVICE int end_keys(int tile, bool causal) const {
    const int keys = causal ? min(kv_len, last_query(tile) + first_position() + 1) : kv_len;
    return ceil_div(max(keys, 0), kTileKeys);
  }
  WL_DEVICE int key_tiles(int tile, bool causal, int window_left) const {
    return max(end_keys(tile, causal) - first_keys(tile, window_left), 0);
  }
};

// A block's walk through its items.
struct WorkCursor {
  int request;
  int head;
  int tile;
  int at;        // where the item begins, in units from the block's first; the first item may begin before
  int units;     // of the block
  int key_tiles; // of the item
  int first;     // its first tile of keys
  RequestWork work;

  template <class Config, class Params>
  WL_DEVICE void open(const Params& params, const WorkStart& start) {
    request = start.request, head = start.head, tile = start.tile;
    at = -start.offset, units = start.units;
    if (at < units) enter_request<Config>(params);
  }

  WL_DEVICE bool done() const { return at >= units; }

  // Tiles of the item's keys that are the block's: [begin(), end()).
  WL_DEVICE int begin() const { return first + max(-at - 1, 0); }
  WL_DEVICE int end() const { return first + min(units - at - 1, key_tiles); }
  // Some, or the item has none and is the block's.
  WL_DEVICE bool takes_part() const { return key_tiles == 0 ? at >= 0 : begin() < end(); }

  template <class Config, class Params>
  WL_DEVICE void next(const Params& params) {
    at += 1 + key_tiles;
    if (done()) return;
    if (++tile == work.tiles) {
      tile = 0;
      if (++head == params.num_kv_heads) {
        head = 0;
        ++request;
        return enter_request<Config>(params);
      }
    }
    enter_item(params);
  }

 private:
  // The first request from here on that has queries. There is one, or the block would be done.
  template <class Config, class Params>
  WL_DEVICE void enter_request(const Params& params) {
#pragma unroll 1
    for (; request < params.batch; ++request) {
      work = RequestWork::of(params, request, Config::kHasWide);
      if (work.tiles > 0) return enter_item(params);
    }
    at = units;
  }

  template <class Params>
  WL_DEVICE void enter_item(const Params& params) {
    first = work.first_keys(tile, params.window_left);
    key_tiles = work.key_tiles(tile, params.causal, params.window_left);
  }
};

// Blocks that share an item, by number, and the block's place among them.
struct ItemShares {
  int first;
  int last;

  // Of the item that begins `at` units after block `block`'s first.
  WL_DEVICE static ItemShares of(int block, int64_t chunk, int at, int key_tiles) {
    if (chunk == 0 || key_tiles == 0) return {block, block};
    const int64_t item = block * chunk + at;
    return {int((item + 1) / chunk), int((item + key_tiles) / chunk)};
  }
};

// Sum over the query tiles of a request. For all lanes of a warp.
WL_DEVICE int64_t units_of_request(const ScheduleParams& params, const RequestWork& work) {
  int64_t units = 0;
  for (int tile = lane_id(); tile < work.tiles; tile += kWarpSize) {
    units += 1 + work.key_tiles(tile, params.causal, params.window_left);
  }
  return warp_reduce(units, Sum());
}

// The item at a unit of the line, which is not beyond its end. For all lanes of a warp.
WL_DEVICE WorkStart locate(const ScheduleParams& params, int64_t unit) {
  int low = 0, high = params.batch - 1;  // the last request that begins at the unit or before, and is not empty
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (params.unit_indptr[middle] <= unit) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  const RequestWork work = RequestWork::of(params, low, params.has_wide);
  const int64_t begin = params.unit_indptr[low], of_head = (params.unit_indptr[low + 1] - begin) / params.num_kv_heads;
  WorkStart start{};
  start.request = low;
  start.head = int((unit - begin) / of_head);
  int64_t left = (unit - begin) % of_head;
  for (int tile = 0; tile < work.tiles; tile += kWarpSize) {
    const int mine = tile + lane_id();
    const int units = mine < work.tiles ? 1 + work.key_tiles(mine, params.causal, params.window_left) : 0;
    const int end = warp_prefix_sum(units);
    const uint32_t beyond = __ballot_sync(kFullMask, end > left);
    if (beyond) {
      const int lane = __ffs(beyond) - 1;
      start.tile = tile + lane;
      start.offset = int(left) - (__shfl_sync(kFullMask, end, lane) - __shfl_sync(kFullMask, units, lane));
      return start;
    }
    left -= __shfl_sync(kFullMask, end, kWarpSize - 1);
  }
  return start;
}

// One block of Config::kThreads threads.
template <class Config>
__global__ void __launch_bounds__(Config::kThreads) schedule_kernel(const __grid_constant__ ScheduleParams params) {
  constexpr int kWarps = Config::kThreads / kWarpSize;
  __shared__ int64_t sums[kWarps];
  for (int request = warp_id(); request < params.batch; request += kWarps) {
    const int64_t units = units_of_request(params, RequestWork::of(params, request, params.has_wide));
    if (lane_id() == 0) params.unit_indptr[request + 1] = units * params.num_kv_heads;
  }
  if (threadIdx.x == 0) params.unit_indptr[0] = 0;
  __syncthreads();
  // Units before each request.
  int64_t before = 0;
  for (int start = 0; start < params.batch; start += Config::kThreads) {
    const int request = start + int(threadIdx.x);
    int64_t end = warp_prefix_sum(request < params.batch ? params.unit_indptr[request + 1] : int64_t(0));
    if (lane_id() == kWarpSize - 1) sums[warp_id()] = end;
    __syncthreads();
    end += before;
    for (int warp = 0; warp < kWarps; ++warp) {
      if (warp < warp_id()) end += sums[warp];
      before += sums[warp];
    }
    if (request < params.batch) params.unit_indptr[request + 1] = end;
    __syncthreads();
  }
  const int64_t total = before;
  const int64_t chunk = max(ceil_div(total, int64_t(params.blocks)), int64_t(params.min_chunk));
  // The item at the block's first unit, or where items are whole the one that begins there or next; and its first unit.
  const auto first_of = [&](int block, WorkStart& start) {
    int64_t unit = block * chunk;
    if (unit >= total) return total;
    start = locate(params, unit);
    if (!params.whole_items || start.offset == 0) return unit;
    const RequestWork work = RequestWork::of(params, start.request, params.has_wide);
    unit += 1 + work.key_tiles(start.tile, params.causal, params.window_left) - start.offset;
    if (unit < total) start = locate(params, unit);
    return unit;
  };
  for (int block = warp_id(); block < params.blocks; block += kWarps) {
    WorkStart start{}, next{};
    const int64_t begin = first_of(block, start);
    const int64_t end = params.whole_items ? first_of(block + 1, next) : min(begin + chunk, total);
    start.units = int(end - begin);
    start.chunk = params.whole_items ? 0 : chunk;
    if (lane_id() == 0) params.starts[block] = start;
  }
}

}  // namespace warploom::attention
