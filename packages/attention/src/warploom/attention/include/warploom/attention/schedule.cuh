// The work of a batch, divided evenly among persistent blocks, by a kernel: nothing of it is known on the host.
//
// An item is a tile of one request's query rows with one key-value head. It counts some units for each tile of keys that it sees,
// more if its rows are many, and some for what it takes beside them. Items lie end to end, by request, head and tile, and every
// block takes as many units of that line as the others: an item may be shared by several blocks, whose results are merged.
//
// Heads are dealt to `lanes`, each of which has a line and blocks of its own. The lines are alike, so that the blocks of one group
// (one of each lane) read the keys of neighbouring heads at the same time: these are neighbours in memory.
#pragma once

#include "warploom/divisor.cuh"
#include "warploom/reduce.cuh"

namespace warploom::attention {

// Sizes of tiles. Query heads of a group are rows: row = query * group_size + head in the group.
struct TileSizes {
  int narrow_rows;  // of requests that have no more rows
  int wide_rows;
  int log2_keys;
  int narrow_units;  // what a tile of keys takes with a narrow tile of rows,
  int wide_units;    // and with a wide one
  int item_units;    // what an item takes beside its tiles of keys

  WL_DEVICE int key_tiles(int keys) const { return (keys + (1 << log2_keys) - 1) >> log2_keys; }
};

// The query tiles of a request.
struct RequestWork {
  int qo_start;
  int qo_len;
  int kv_len;
  int kv_start;
  int tile_rows;
  int tiles;
  int tile_units;  // of a tile of keys

  template <class Params>
  WL_DEVICE static RequestWork of(const Params& params, int request) {
    RequestWork work;
    work.qo_start = params.qo_indptr[request];
    work.qo_len = params.qo_indptr[request + 1] - work.qo_start;
    work.kv_len = params.kv_lens[request];
    work.kv_start = params.kv_starts[request];
    const int rows = max(work.qo_len, 0) * int(params.group_size.divisor);
    const bool is_wide = rows > params.tile.narrow_rows;
    work.tile_rows = is_wide ? params.tile.wide_rows : params.tile.narrow_rows;
    work.tile_units = is_wide ? params.tile.wide_units : params.tile.narrow_units;
    work.tiles = ceil_div(rows, work.tile_rows);
    return work;
  }

  // Position of the request's first query among its keys: queries are their tail.
  WL_DEVICE int first_position() const { return kv_len - qo_len; }
  WL_DEVICE int first_query(int tile, const Divisor& group_size) const { return group_size.divide(tile * tile_rows); }
  WL_DEVICE int last_query(int tile, const Divisor& group_size) const {
    return min(group_size.divide((tile + 1) * tile_rows - 1), qo_len - 1);
  }
};

// Tiles of keys that a query tile can see.
struct KeyTiles {
  int first;
  int count;

  template <class Params>
  WL_DEVICE static KeyTiles of(const Params& params, const RequestWork& work, int tile) {
    int keys = work.kv_len;
    if (params.causal) keys = min(keys, work.last_query(tile, params.group_size) + work.first_position() + 1);
    int first = 0;
    if (params.window_left >= 0) {
      first = max(work.first_query(tile, params.group_size) + work.first_position() - params.window_left, 0) >> params.tile.log2_keys;
    }
    return {first, max(params.tile.key_tiles(max(keys, 0)) - first, 0)};
  }
};

// Where a block is in its work.
struct WorkCursor {
  int request;
  int head;
  int tile;
  int at;     // where the item begins, in units from the block's first; the first item may begin before
  int units;  // of the block
  int item_units;
  KeyTiles keys;
  RequestWork work;

  WL_DEVICE bool done() const { return at >= units; }

  // Where the item ends, in units from the block's first.
  WL_DEVICE int ends_at() const { return at + item_units + keys.count * work.tile_units; }

  // Tiles of the item's keys that are the block's, because their first unit is: [begin(), end()).
  WL_DEVICE int begin() const { return keys.first + min(tiles_before(0), keys.count); }
  WL_DEVICE int end() const { return keys.first + min(tiles_before(units), keys.count); }
  // Some, or the item has none and is the block's.
  WL_DEVICE bool takes_part() const { return keys.count == 0 ? at >= 0 : begin() < end(); }

 private:
  // Of the item's, those that begin before a unit of the block.
  WL_DEVICE int tiles_before(int unit) const { return ceil_div(max(unit - at - item_units, 0), work.tile_units); }
};

// To the next item.
template <class Params>
WL_DEVICE void step(WorkCursor& cursor, const Params& params) {
  cursor.at = cursor.ends_at();
  if (cursor.done()) return;
  if (++cursor.tile == cursor.work.tiles) {
    cursor.tile = 0;
    cursor.head += params.lanes;
    if (cursor.head >= params.num_kv_heads) {
      cursor.head -= params.num_kv_heads;  // the lane's first
      // There is another request with queries, or the block would be done.
      do {
        if (++cursor.request >= params.batch) {
          cursor.at = cursor.units;
          return;
        }
        cursor.work = RequestWork::of(params, cursor.request);
      } while (cursor.work.tiles == 0);
    }
  }
  cursor.keys = KeyTiles::of(params, cursor.work, cursor.tile);
}

template <class Params>
__device__ __noinline__ void step_by_call(WorkCursor& cursor, const Params& params) {
  step(cursor, params);
}

// A warp's cursor in shared memory, to the next item. kCalls: by a call, because it is needed in several places and takes no time;
// kernels that move registers between warps can't have calls, ptxas does not end then.
template <bool kCalls, class Params>
WL_DEVICE void advance(WorkCursor& cursor, const Params& params) {
  __syncwarp();
  if (lane_id() == 0) {
    if constexpr (kCalls) {
      step_by_call(cursor, params);
    } else {
      step(cursor, params);
    }
  }
  __syncwarp();
}

// What the planner writes for each block.
struct WorkStart {
  WorkCursor cursor;
  int unused = 0;  // before 8 bytes that are aligned
  int64_t chunk;   // units of every block but the last; 0 where items are never shared
};
static_assert(sizeof(WorkStart) == 18 * sizeof(int), "as the workspace has them");

// Which table follows from the others and is written first.
enum class Unwritten { kNothing, kLens, kStarts };

struct ScheduleParams {
  const int* qo_indptr;      // [batch + 1]
  int* kv_lens;              // [batch]
  int* kv_starts;            // [batch + 1], where each request's pages or rows start and those of the one before end
  const int* last_page_len;  // [batch], or null: last pages are full
  int64_t* unit_indptr;      // [batch + 1], scratch: of a lane
  WorkStart* starts;         // [groups, lanes]
  int* arrivals;             // [groups * lanes], which become 0
  Divisor group_size;
  int batch;
  Unwritten unwritten;
  int page_size;  // 1 without pages
  int num_kv_heads;
  int causal;
  int window_left;  // -1: none
  TileSizes tile;
  int lanes;   // a divisor of num_kv_heads
  int groups;  // blocks of each lane
  int min_chunk;
  int whole_items;  // items are never shared
};

// The groups whose blocks of a lane share an item.
struct ItemShares {
  int first;
  int last;

  // Of the item that the block of `group` is at.
  WL_DEVICE static ItemShares of(int group, int64_t chunk, const WorkCursor& cursor) {
    const int before_keys = cursor.at + cursor.item_units;
    const int last_tile = cursor.ends_at() - cursor.work.tile_units;
    const bool is_whole = before_keys >= 0 && last_tile < cursor.units;
    if (is_whole || chunk == 0 || cursor.keys.count == 0) return {group, group};
    const int64_t first = group * chunk;
    return {int((first + before_keys) / chunk), int((first + last_tile) / chunk)};
  }
};

// Sum over the query tiles of a request. For all lanes of a warp.
WL_DEVICE int64_t units_of_request(const ScheduleParams& params, const RequestWork& work) {
  int64_t units = 0;
  for (int tile = lane_id(); tile < work.tiles; tile += kWarpSize) {
    units += params.tile.item_units + KeyTiles::of(params, work, tile).count * work.tile_units;
  }
  return warp_reduce(units, Sum());
}

// The item at a unit of the first lane's line, which is not beyond its end. For all lanes of a warp.
WL_DEVICE WorkCursor locate(const ScheduleParams& params, int64_t unit) {
  int low = 0, high = params.batch - 1;  // the last request that begins at the unit or before, and is not empty
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (params.unit_indptr[middle] <= unit) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  WorkCursor cursor{};
  cursor.request = low;
  cursor.item_units = params.tile.item_units;
  cursor.work = RequestWork::of(params, low);
  const int64_t begin = params.unit_indptr[low], of_head = (params.unit_indptr[low + 1] - begin) / (params.num_kv_heads / params.lanes);
  cursor.head = int((unit - begin) / of_head) * params.lanes;
  int64_t left = (unit - begin) % of_head;
  for (int tile = 0; tile < cursor.work.tiles; tile += kWarpSize) {
    const int mine = tile + lane_id();
    const int tiles = mine < cursor.work.tiles ? KeyTiles::of(params, cursor.work, mine).count : 0;
    const int units = mine < cursor.work.tiles ? params.tile.item_units + tiles * cursor.work.tile_units : 0;
    const int end = warp_prefix_sum(units);
    const uint32_t beyond = __ballot_sync(kFullMask, end > left);
    if (beyond) {
      const int lane = __ffs(beyond) - 1;
      cursor.tile = tile + lane;
      cursor.at = __shfl_sync(kFullMask, end, lane) - __shfl_sync(kFullMask, units, lane) - int(left);
      break;
    }
    left -= __shfl_sync(kFullMask, end, kWarpSize - 1);
  }
  cursor.keys = KeyTiles::of(params, cursor.work, cursor.tile);
  return cursor;
}

// Calls store(i, x(i), sum of the x before it) for each i below `count`, and returns the sum of all. For all threads of a block.
template <int kThreads, class Value, class Store>
WL_DEVICE int64_t block_prefix_sums(int count, const Value& x, const Store& store) {
  __shared__ int64_t sums[kThreads / kWarpSize];
  int64_t before = 0;
  for (int start = 0; start < count; start += kThreads) {
    const int i = start + int(threadIdx.x);
    const int64_t mine = i < count ? x(i) : int64_t(0);
    int64_t end = warp_prefix_sum(mine);
    if (lane_id() == kWarpSize - 1) sums[warp_id()] = end;
    __syncthreads();
    end += before;
    for (int warp = 0; warp < kThreads / kWarpSize; ++warp) {
      if (warp < warp_id()) end += sums[warp];
      before += sums[warp];
    }
    if (i < count) store(i, mine, end - mine);
    __syncthreads();
  }
  return before;
}

// What the tables leave to the planner. For all threads of a block, which see it afterwards.
template <int kThreads>
WL_DEVICE void write_tables(const ScheduleParams& params) {
  if (params.unwritten == Unwritten::kLens) {
    for (int request = threadIdx.x; request < params.batch; request += kThreads) {
      const int pages = params.kv_starts[request + 1] - params.kv_starts[request];
      const int last = params.last_page_len ? params.last_page_len[request] : params.page_size;
      params.kv_lens[request] = pages > 0 ? (pages - 1) * params.page_size + last : 0;
    }
  } else if (params.unwritten == Unwritten::kStarts) {
    const auto pages_of = [&](int request) -> int64_t { return ceil_div(params.kv_lens[request], params.page_size); };
    const auto store = [&](int request, int64_t, int64_t before) { params.kv_starts[request] = int(before); };
    const int64_t pages = block_prefix_sums<kThreads>(params.batch, pages_of, store);
    if (threadIdx.x == 0) params.kv_starts[params.batch] = int(pages);
  }
  __syncthreads();
}

// One block of Config::kThreads threads.
template <class Config>
__global__ void __launch_bounds__(Config::kThreads) schedule_kernel(const __grid_constant__ ScheduleParams params) {
  constexpr int kWarps = Config::kThreads / kWarpSize;
  write_tables<Config::kThreads>(params);
  for (int request = warp_id(); request < params.batch; request += kWarps) {
    const int64_t units = units_of_request(params, RequestWork::of(params, request));
    if (lane_id() == 0) params.unit_indptr[request + 1] = units * (params.num_kv_heads / params.lanes);
  }
  if (threadIdx.x == 0) params.unit_indptr[0] = 0;
  for (int block = threadIdx.x; block < params.groups * params.lanes; block += Config::kThreads) params.arrivals[block] = 0;
  __syncthreads();
  // Units before each request.
  const auto units_of = [&](int request) { return params.unit_indptr[request + 1]; };
  const auto store = [&](int request, int64_t units, int64_t before) { params.unit_indptr[request + 1] = before + units; };
  const int64_t total = block_prefix_sums<Config::kThreads>(params.batch, units_of, store);
  const int64_t chunk = max(ceil_div(total, int64_t(params.groups)), int64_t(params.min_chunk));
  // The item at the group's first unit, or where items are whole the one that begins there or next; and its first unit.
  const auto first_of = [&](int group, WorkCursor& cursor) {
    int64_t unit = group * chunk;
    if (unit >= total) return total;
    cursor = locate(params, unit);
    if (!params.whole_items || cursor.at == 0) return unit;
    unit += cursor.ends_at();
    if (unit < total) cursor = locate(params, unit);
    return unit;
  };
  for (int group = warp_id(); group < params.groups; group += kWarps) {
    WorkStart start{};
    WorkCursor next{};
    const int64_t begin = first_of(group, start.cursor);
    const int64_t end = params.whole_items ? first_of(group + 1, next) : min(begin + chunk, total);
    start.cursor.units = int(end - begin);
    start.chunk = params.whole_items ? 0 : chunk;
    const int head = start.cursor.head;
    for (int lane = lane_id(); lane < params.lanes; lane += kWarpSize) {
      start.cursor.head = head + lane;
      params.starts[group * params.lanes + lane] = start;
    }
  }
}

}  // namespace warploom::attention
