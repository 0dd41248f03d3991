// computes     attention with sinks of one new position over a main cache, a tail and itself; appends it to the tail.
// shapes       q [S, KV_HEADS * HEADS, 64] f32 and k, v [S, KV_HEADS, 64], of which row lengths[4] is used;
//              main_k, main_v [KV_HEADS, C, 64], lengths[1] of C = lengths[3] keys valid; tail_k, tail_v
//              [KV_HEADS, TAIL, 64], lengths[2] < TAIL valid; sinks [KV_HEADS * HEADS]; lengths i32 [8];
//              next_k, next_v: the tail with the position written at lengths[2], later rows undefined;
//              out: FINAL [KV_HEADS * HEADS, 64] f32, else parts [KV_HEADS * HEADS, parts, 68] for attention_merge.
// grid         parts x KV_HEADS * ceil(HEADS / 8) threadgroups; main cache, tail and the new position are one run of keys,
//              whose blocks of 4 UNROLL go round the simdgroups of all parts. FINAL needs one part.
// threadgroup  32 SIMDGROUPS threads.
// bytes        every valid K and V once (once for 8 query heads), the valid tail written once.
// why          stock kernels read K and V once for each of the 8 query heads, or know no sinks; a cache that only grows
//              in its small tail is never copied. Blocks in turn need no division before the first load, and no part
//              has the tail to itself.
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
  threadgroup float4 weights[SIMDGROUPS * attend_weights(UNROLL)];
  threadgroup float2 stats[SIMDGROUPS * ATTEND_HEADS];
  constexpr int GROUPS = (HEADS + 7) / 8;
  constexpr int BLOCK = 4 * UNROLL;
  constexpr int WORDS = 2 * sizeof(T);  // of 8 values
  constexpr int PAIR = sizeof(T) / 2;   // of 2 values
  uint lane = thread_index_in_simdgroup;
  int part = int(threadgroup_position_in_grid.x);
  int parts = int(threadgroups_per_grid.x);
  int kv = int(threadgroup_position_in_grid.y) / GROUPS;
  int group = int(threadgroup_position_in_grid.y) % GROUPS;
  int heads = HEADS % 8 == 0 ? 8 : metal::min(HEADS - 8 * group, 8);
  int head = kv * HEADS + 8 * group;
  int n_main = lengths[1];
  int n_tail = lengths[2];
  int capacity = lengths[3];
  int row = lengths[4];
  float queries[64];
  load_queries(q + (row * KV_HEADS * HEADS + head) * 64, heads, lane, queries);
  int count = n_main + n_tail + 1;
  const device T* keys = main_k + size_t(kv) * capacity * 64;
  const device T* values = main_v + size_t(kv) * capacity * 64;
  int tail = kv * TAIL * 64;
  int fresh = (row * KV_HEADS + kv) * 64;
  int dims = int(lane & 7u);
  threadgroup float4* passed = weights + int(simdgroup_index_in_threadgroup) * attend_weights(UNROLL);
  float m = -1e30f;
  float l = 0.0f;
  float2 acc[ATTEND_HEADS];
#pragma clang loop unroll(full)
  for (int h = 0; h < ATTEND_HEADS; ++h) {
    acc[h] = float2(0.0f);
  }
  uint raw_k[UNROLL * WORDS];
  uint raw_v[BLOCK * PAIR];
  int first = (part * SIMDGROUPS + int(simdgroup_index_in_threadgroup)) * BLOCK;
  // The next keys are on their way while the present values are used, and the values while the keys are.
  for (int base = first;; base += parts * SIMDGROUPS * BLOCK) {
    if (base + BLOCK <= n_main) {
#pragma clang loop unroll(full)
      for (int u = 0; u < UNROLL; ++u) {
        load8(keys + base * 64, (4 * u + int(lane >> 3)) * 8 + dims, raw_k + u * WORDS);
      }
    } else if (base < count) {
#pragma clang loop unroll(full)
      for (int u = 0; u < UNROLL; ++u) {
        int key = base + 4 * u + int(lane >> 3);
        int at = key - n_main;
        // Lanes past the end take the new position, whose weight is then zero.
        load8(at >= n_tail ? k + fresh : at < 0 ? keys + key * 64 : tail_k + tail + at * 64, dims, raw_k + u * WORDS);
        if (key < count && at >= 0 && group == 0) {
          store8(next_k + tail, at * 8 + dims, raw_k + u * WORDS);
        }
      }
    }
    if (base > first) {
      add_values<UNROLL>(main_v, raw_v, passed, acc);
    }
    if (base >= count) {
      break;
    }
    if (base + BLOCK <= n_main) {
#pragma clang loop unroll(full)
      for (int u = 0; u < BLOCK; ++u) {
        load2(values + base * 64, u * 32 + int(lane), raw_v + u * PAIR);
      }
    } else {
#pragma clang loop unroll(full)
      for (int u = 0; u < BLOCK; ++u) {
        int at = base + u - n_main;
        load2(
            at >= n_tail ? v + fresh : at < 0 ? values + (base + u) * 64 : tail_v + tail + at * 64,
            int(lane),
            raw_v + u * PAIR);
        if (base + u < count && at >= 0 && group == 0) {
          store2(next_v + tail, at * 32 + int(lane), raw_v + u * PAIR);
        }
      }
    }
    // Holds the loads above in place; the weights have been read.
    simdgroup_barrier(mem_flags::mem_threadgroup);
    float score[UNROLL];
    score_keys<UNROLL>(main_k, queries, raw_k, score);
#pragma clang loop unroll(full)
    for (int u = 0; u < UNROLL; ++u) {
      score[u] = base + 4 * u + int(lane >> 3) < count ? score[u] : no_score();
    }
    weigh_keys<UNROLL>(score, lane, m, l, passed);
  }
  device float* to = FINAL ? out + head * 64 : out + head * parts * ATTEND_PART;
  finish<SIMDGROUPS, FINAL>(
      m, l, acc, sinks + head, heads, part, parts, memory, stats, simdgroup_index_in_threadgroup, lane, to);
}
