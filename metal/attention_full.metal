// computes     attention with sinks of one new position over a main cache, a tail and itself; appends it to the tail.
// shapes       q [S, KV_HEADS * HEADS, 64] f32 and k, v [S, KV_HEADS, 64], of which row lengths[4] is used;
//              main_k, main_v [KV_HEADS, C, 64], lengths[1] of C = lengths[3] keys valid; tail_k, tail_v
//              [KV_HEADS, TAIL, 64], lengths[2] < TAIL valid; sinks [KV_HEADS * HEADS]; lengths i32 [8];
//              next_k, next_v: the tail with the position written at lengths[2], later rows undefined;
//              out: FINAL [KV_HEADS * HEADS, 64] f32, else parts [KV_HEADS * HEADS, parts, 68] for attention_merge.
// grid         parts x KV_HEADS * ceil(HEADS / 8) threadgroups; part i takes the i-th stretch of the main cache, the
//              last part the tail as well. FINAL needs one part.
// threadgroup  32 SIMDGROUPS threads.
// bytes        every valid K and V once (once for 8 query heads), the valid tail written once.
// why          stock kernels read K and V once for each of the 8 query heads, or know no sinks; a cache that only grows
//              in its small tail is never copied.
// reference    mlx_gptoss/kernels/attention.py, attention_full_twin.
#include "attend.h"

template <typename T, typename B, int HEADS, int KV_HEADS, int TAIL, int SIMDGROUPS, int UNROLL, bool FINAL>
[[kernel]] void attention_full(
    const device float* q [[buffer(0)]],
    const device T* k [[buffer(1)]],
    const device T* v [[buffer(2)]],
    const device T* main_k [[buffer(3)]],
    const device T* main_v [[buffer(4)]],
    const device T* tail_k [[buffer(5)]],
    const device T* tail_v [[buffer(6)]],
    const device B* sinks [[buffer(7)]],
    const device int* lengths [[buffer(8)]],
    device float* out [[buffer(9)]],
    device T* next_k [[buffer(10)]],
    device T* next_v [[buffer(11)]],
    uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]],
    uint3 threadgroups_per_grid [[threadgroups_per_grid]],
    uint simdgroup_index_in_threadgroup [[simdgroup_index_in_threadgroup]],
    uint thread_index_in_simdgroup [[thread_index_in_simdgroup]]) {
  threadgroup float4 memory[attend_memory(SIMDGROUPS)];
  threadgroup float stats[SIMDGROUPS * ATTEND_HEADS * 2];
  constexpr int GROUPS = (HEADS + 7) / 8;
  constexpr int BLOCK = 4 * UNROLL;
  uint lane = thread_index_in_simdgroup;
  int part = int(threadgroup_position_in_grid.x);
  int parts = int(threadgroups_per_grid.x);
  int kv = int(threadgroup_position_in_grid.y) / GROUPS;
  int group = int(threadgroup_position_in_grid.y) % GROUPS;
  int heads = metal::min(HEADS - 8 * group, 8);
  int head = kv * HEADS + 8 * group;
  int row = lengths[4];
  int capacity = lengths[3];
  int dims = int(lane & 7u);
  float queries[64];
  load_queries(q + (row * KV_HEADS * HEADS + head) * 64, heads, lane, queries);
  float m[ATTEND_HEADS];
  float l[ATTEND_HEADS];
  float acc[64];
  for (int h = 0; h < ATTEND_HEADS; ++h) {
    m[h] = -1e30f;
    l[h] = 0.0f;
  }
  for (int i = 0; i < 64; ++i) {
    acc[i] = 0.0f;
  }
  // The stretch of the main cache, then for the last part the tail and the new position, as one run of keys.
  int n_main = lengths[1];
  int n_tail = lengths[2];
  int share = (n_main + parts * BLOCK - 1) / (parts * BLOCK) * BLOCK;
  int start = metal::min(n_main, part * share);
  int stretch = metal::min(n_main, start + share) - start;
  int count = stretch + (part == parts - 1 ? n_tail + 1 : 0);
  const device T* keys = main_k + (size_t(kv) * capacity + start) * 64;
  const device T* values = main_v + (size_t(kv) * capacity + start) * 64;
  int tail = kv * TAIL * 64;
  int fresh = (row * KV_HEADS + kv) * 64;
  constexpr int WORDS = 2 * sizeof(T);
  constexpr int STEP = SIMDGROUPS * BLOCK;
  uint raw[2 * UNROLL * WORDS];
  uint next[2 * UNROLL * WORDS];
  bool valid[UNROLL];
  int base = int(simdgroup_index_in_threadgroup) * BLOCK;
  // The next keys are on their way while the present ones are used.
  for (int ahead = base; base < count; ahead += STEP) {
    if (ahead + BLOCK <= stretch) {
#pragma clang loop unroll(full)
      for (int u = 0; u < UNROLL; ++u) {
        int key = ahead + 4 * u + int(lane >> 3);
        load8(keys, key * 8 + dims, next + 2 * u * WORDS);
        load8(values, key * 8 + dims, next + (2 * u + 1) * WORDS);
      }
    } else if (ahead < count) {
#pragma clang loop unroll(full)
      for (int u = 0; u < UNROLL; ++u) {
        int key = ahead + 4 * u + int(lane >> 3);
        int at = key - stretch;
        // Lanes past the end take the new position, whose weight is then zero.
        bool old = key < count && at < n_tail;
        const device T* from_k = !old ? k + fresh : at < 0 ? keys + key * 64 : tail_k + tail + at * 64;
        const device T* from_v = !old ? v + fresh : at < 0 ? values + key * 64 : tail_v + tail + at * 64;
        load8(from_k, dims, next + 2 * u * WORDS);
        load8(from_v, dims, next + (2 * u + 1) * WORDS);
        if (key < count && at >= 0 && group == 0) {
          store8(next_k + tail, at * 8 + dims, next + 2 * u * WORDS);
          store8(next_v + tail, at * 8 + dims, next + (2 * u + 1) * WORDS);
        }
      }
    }
    if (ahead > base) {
#pragma clang loop unroll(full)
      for (int u = 0; u < UNROLL; ++u) {
        valid[u] = base + 4 * u + int(lane >> 3) < count;
      }
      attend<UNROLL>(main_k, queries, raw, valid, m, l, acc);
      base = ahead;
    }
    if (base >= count) {
      break;
    }
#pragma clang loop unroll(full)
    for (int i = 0; i < 2 * UNROLL * WORDS; ++i) {
      raw[i] = next[i];
    }
  }
  device float* to = FINAL ? out + head * 64 : out + head * parts * ATTEND_PART;
  finish<SIMDGROUPS, FINAL>(
      m, l, acc, sinks + head, heads, part, parts, memory, stats, simdgroup_index_in_threadgroup, lane, to);
}
