// computes     attention with sinks of one new position over a main cache, a tail and itself; appends it to the tail.
// shapes       q [S, KV_HEADS * HEADS, 64] f32 and k, v [S, KV_HEADS, 64], of which row lengths[4] is used;
//              main_k, main_v [KV_HEADS, C, 64], lengths[1] of C = lengths[3] keys valid; tail_k, tail_v
//              [KV_HEADS, TAIL, 64], lengths[2] < TAIL valid; sinks [KV_HEADS * HEADS]; lengths i32 [8];
//              next_k, next_v: the tail with the position written at lengths[2], later rows undefined;
//              out: FINAL [KV_HEADS * HEADS, 64] f32, else parts [KV_HEADS * HEADS, parts, 68] for attention_merge.
// grid         parts x KV_HEADS * ceil(HEADS / 8) threadgroups; blocks of 4 UNROLL keys, the main cache's and then
//              the tail's, go round the parts and their simdgroups. FINAL needs one part.
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
  threadgroup float4 memory[SIMDGROUPS * ATTEND_MEMORY];
  threadgroup float2 stats[SIMDGROUPS * ATTEND_HEADS];
  constexpr int GROUPS = (HEADS + 7) / 8;
  constexpr int BLOCK = 4 * UNROLL;
  constexpr int WORDS = 2 * sizeof(T);  // of 8 values
  constexpr int PAIR = sizeof(T) / 2;   // of 2 values
  static_assert(8 * BLOCK + 32 <= 4 * ATTEND_MEMORY, "a block's weights do not fit a simdgroup's memory");
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
  // Blocks of the main cache first, then of the tail with the new position behind it.
  int n_blocks = (n_main + BLOCK - 1) / BLOCK;
  int blocks = n_blocks + n_tail / BLOCK + 1;
  const device T* keys = main_k + size_t(kv) * capacity * 64;
  const device T* values = main_v + size_t(kv) * capacity * 64;
  int tail = kv * TAIL * 64;
  int fresh = (row * KV_HEADS + kv) * 64;
  int key = int(lane >> 3);
  int dims = int(lane & 7u);
  threadgroup float4* weights = memory + int(simdgroup_index_in_threadgroup) * ATTEND_MEMORY;
  float queries[64];
  float m = -1e30f;
  float l = 0.0f;
  float2 acc[ATTEND_HEADS];
#pragma clang loop unroll(full)
  for (int h = 0; h < ATTEND_HEADS; ++h) {
    acc[h] = float2(0.0f);
  }
  uint raw_k[UNROLL * WORDS];
  uint raw_v[BLOCK * PAIR];
  int first = int(simdgroup_index_in_threadgroup) * parts + part;
  // The next keys are on their way while the present values are used, and the values while the keys are.
  for (int block = first;; block += parts * SIMDGROUPS) {
    bool old = block < n_blocks;
    int base = (old ? block : block - n_blocks) * BLOCK;
    int have = (old ? n_main : n_tail) - base;
    if (block < blocks) {
      const device T* from = (old ? keys : tail_k + tail) + base * 64;
      if (have >= BLOCK) {
#pragma clang loop unroll(full)
        for (int u = 0; u < UNROLL; ++u) {
          load8(from + int(lane) * 8, 32 * u, raw_k + u * WORDS);
        }
      } else {
        // What is missing is the new position, at first as a key and then as keys of no weight.
#pragma clang loop unroll(full)
        for (int u = 0; u < UNROLL; ++u) {
          load8(4 * u + key < have ? from + (4 * u + key) * 64 : k + fresh, dims, raw_k + u * WORDS);
        }
      }
    }
    if (block > first) {
      add_values<UNROLL>(main_v, raw_v, weights, acc);
    }
    if (block >= blocks) {
      break;
    }
    const device T* from = (old ? values : tail_v + tail) + base * 64;
    if (have >= BLOCK) {
#pragma clang loop unroll(full)
      for (int u = 0; u < BLOCK; ++u) {
        load2(from + int(lane) * 2, 32 * u, raw_v + u * PAIR);
      }
    } else {
#pragma clang loop unroll(full)
      for (int u = 0; u < BLOCK; ++u) {
        load2(u < have ? from + u * 64 : v + fresh, int(lane), raw_v + u * PAIR);
      }
      // Ends otherwise than the branch above, lest a compiler merge their loads and carry a pointer for each.
      simdgroup_barrier(mem_flags::mem_none);
    }
    if (block == first) {
      load_queries(q + (row * KV_HEADS * HEADS + head) * 64, heads, lane, queries);
    }
    // Holds the loads above in place; the weights have been read.
    simdgroup_barrier(mem_flags::mem_threadgroup);
    int valid = old ? have : have + 1;
    float score[UNROLL];
    score_keys<UNROLL>(main_k, queries, raw_k, score);
#pragma clang loop unroll(full)
    for (int u = 0; u < UNROLL; ++u) {
      score[u] = 4 * u + key < valid ? score[u] : no_score();
    }
    weigh_keys<UNROLL>(score, lane, m, l, weights);
    // Last, since nothing else of this step waits for the values.
    if (!old && group == 0) {
#pragma clang loop unroll(full)
      for (int u = 0; u < UNROLL; ++u) {
        if (4 * u + key < valid) {
          store8(next_k + tail + base * 64 + int(lane) * 8, 32 * u, raw_k + u * WORDS);
        }
      }
#pragma clang loop unroll(full)
      for (int u = 0; u < BLOCK; ++u) {
        if (u < valid) {
          store2(next_v + tail + base * 64 + int(lane) * 2, 32 * u, raw_v + u * PAIR);
        }
      }
    }
  }
  device float* to = FINAL ? out + head * 64 : out + head * parts * ATTEND_PART;
  finish<SIMDGROUPS, FINAL>(
      m, l, acc, sinks + head, heads, part, parts, memory, stats, simdgroup_index_in_threadgroup, lane, to);
}
