// computes     the pairs (token, expert) sorted by expert, in token order within an expert, and the tiles that cover
//              them: each tile has one expert and at most BM slots.
// shapes       picks i32 [R]; params i32 [8], [0] = R; order i32 [R], the pair at each slot; inverse i32 [R], the slot
//              of each pair; tiles i32 [T, 4] with T >= R / BM + min(E, R): expert, first slot, slots, 0; those beyond
//              the last hold 0 slots. params[1] = T.
// grid         one threadgroup.
// threadgroup  THREADS threads (E or more); a table of THREADS / 32 x E counts.
// bytes        picks twice, order and inverse once.
// why          routing stays on the device: the host never waits for the counts. A counting sort by simdgroups: each
//              counts its share, a scan over simdgroups and experts gives each its first slots.
// reference    mlx_gptoss/kernels/prefill_routing.py, prefill_sort_twin.
#include <metal_stdlib>
using namespace metal;

template <int E, int BM, int THREADS>
[[kernel]] void prefill_sort(
    const device int* picks [[buffer(0)]],
    const device int* params [[buffer(1)]],
    device int* order [[buffer(2)]],
    device int* inverse [[buffer(3)]],
    device int* tiles [[buffer(4)]],
    uint thread_index_in_threadgroup [[thread_index_in_threadgroup]],
    uint simdgroup_index_in_threadgroup [[simdgroup_index_in_threadgroup]],
    uint thread_index_in_simdgroup [[thread_index_in_simdgroup]]) {
  constexpr int SIMDS = THREADS / 32;
  threadgroup int table[SIMDS * E];
  threadgroup int starts[E];
  threadgroup int first_tile[E + 1];
  int index = int(thread_index_in_threadgroup);
  int simdgroup = int(simdgroup_index_in_threadgroup);
  int lane = int(thread_index_in_simdgroup);
  int count = params[0];
  int tile_count = params[1];
  // Each simdgroup takes a run of pairs, a multiple of 32.
  int run = (count + THREADS - 1) / THREADS * 32;
  int begin = simdgroup * run;
  int end = metal::min(begin + run, count);
  threadgroup int* mine = table + simdgroup * E;
  for (int e = lane; e < E; e += 32) {
    mine[e] = 0;
  }
  simdgroup_barrier(mem_flags::mem_threadgroup);
  for (int i = begin; i < end; i += 32) {
    int expert = i + lane < end ? picks[i + lane] : -1;
    int same = 0;
    int before = 0;
    for (int other = 0; other < 32; ++other) {
      int theirs = simd_shuffle(expert, ushort(other));
      same += theirs == expert ? 1 : 0;
      before += theirs == expert && other < lane ? 1 : 0;
    }
    if (expert >= 0 && before == 0) {
      mine[expert] += same;
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (index < E) {
    int total = 0;
    for (int s = 0; s < SIMDS; ++s) {
      int here = table[s * E + index];
      table[s * E + index] = total;
      total += here;
    }
    starts[index] = total;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (simdgroup == 0) {
    int slot = 0;
    int tile = 0;
    for (int base = 0; base < E; base += 32) {
      int e = base + lane;
      int size = e < E ? starts[e] : 0;
      int need = (size + BM - 1) / BM;
      int slots = simd_prefix_exclusive_sum(size);
      int ahead = simd_prefix_exclusive_sum(need);
      if (e < E) {
        starts[e] = slot + slots;
        first_tile[e] = tile + ahead;
      }
      slot += simd_sum(size);
      tile += simd_sum(need);
    }
    if (lane == 0) {
      first_tile[E] = tile;
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int t = index; t < tile_count; t += THREADS) {
    int expert = 0;
    int slots = 0;
    int first = 0;
    if (t < first_tile[E]) {
      int low = 0;
      int high = E - 1;
      while (low < high) {
        int middle = (low + high + 1) / 2;
        if (first_tile[middle] <= t) {
          low = middle;
        } else {
          high = middle - 1;
        }
      }
      expert = low;
      first = starts[low] + (t - first_tile[low]) * BM;
      int stop = low + 1 < E ? starts[low + 1] : count;
      slots = metal::min(BM, stop - first);
    }
    tiles[4 * t] = expert;
    tiles[4 * t + 1] = first;
    tiles[4 * t + 2] = slots;
    tiles[4 * t + 3] = 0;
  }
  for (int i = begin; i < end; i += 32) {
    int expert = i + lane < end ? picks[i + lane] : -1;
    int same = 0;
    int before = 0;
    for (int other = 0; other < 32; ++other) {
      int theirs = simd_shuffle(expert, ushort(other));
      same += theirs == expert ? 1 : 0;
      before += theirs == expert && other < lane ? 1 : 0;
    }
    if (expert >= 0) {
      int slot = starts[expert] + mine[expert] + before;
      order[slot] = i + lane;
      inverse[i + lane] = slot;
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    if (expert >= 0 && before == 0) {
      mine[expert] += same;
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
  }
}
