// computes     attention with sinks of one new position over the ring of the last WINDOW positions, itself included;
//              writes it into the ring.
// shapes       q [S, KV_HEADS * HEADS, 64] f32 and k, v [S, KV_HEADS, 64], of which row lengths[4] is used; ring_k,
//              ring_v [KV_HEADS, WINDOW, 64], position p in slot p % WINDOW; sinks [KV_HEADS * HEADS]; lengths i32 [8],
//              lengths[0] positions written so far; next_k, next_v the ring afterwards, slots never written undefined;
//              out: FINAL [KV_HEADS * HEADS, 64] f32, else parts [KV_HEADS * HEADS, 1, 68] for attention_merge.
// grid         KV_HEADS * ceil(HEADS / 8) threadgroups.
// threadgroup  32 SIMDGROUPS threads.
// bytes        every valid slot of K and V read once and written once.
// why          the window is exact by construction: the new position takes the slot of the one that leaves.
// reference    mlx_gptoss/kernels/attention.py, attention_sliding_twin.
#include "attend.h"

template <typename T, typename B, int HEADS, int KV_HEADS, int WINDOW, int SIMDGROUPS, int UNROLL, bool FINAL>
[[kernel]] void attention_sliding(
    const device float* q [[buffer(0)]],
    const device T* k [[buffer(1)]],
    const device T* v [[buffer(2)]],
    const device T* ring_k [[buffer(3)]],
    const device T* ring_v [[buffer(4)]],
    const device B* sinks [[buffer(5)]],
    const device int* lengths [[buffer(6)]],
    device float* out [[buffer(7)]],
    device T* next_k [[buffer(8)]],
    device T* next_v [[buffer(9)]],
    uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]],
    uint simdgroup_index_in_threadgroup [[simdgroup_index_in_threadgroup]],
    uint thread_index_in_simdgroup [[thread_index_in_simdgroup]]) {
  threadgroup float4 memory[attend_memory(SIMDGROUPS)];
  threadgroup float stats[SIMDGROUPS * ATTEND_HEADS * 2];
  constexpr int GROUPS = (HEADS + 7) / 8;
  constexpr int BLOCK = 4 * UNROLL;
  uint lane = thread_index_in_simdgroup;
  int kv = int(threadgroup_position_in_grid.x) / GROUPS;
  int group = int(threadgroup_position_in_grid.x) % GROUPS;
  int heads = metal::min(HEADS - 8 * group, 8);
  int head = kv * HEADS + 8 * group;
  int row = lengths[4];
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
  int position = lengths[0];
  int slot = position % WINDOW;
  int count = metal::min(position + 1, WINDOW);
  int fresh = (row * KV_HEADS + kv) * 64;
  int ring = kv * WINDOW * 64;
  constexpr int WORDS = 2 * sizeof(T);
  uint raw[2 * UNROLL * WORDS];
  for (int base = int(simdgroup_index_in_threadgroup) * BLOCK; base < count; base += SIMDGROUPS * BLOCK) {
    bool valid[UNROLL];
#pragma clang loop unroll(full)
    for (int u = 0; u < UNROLL; ++u) {
      int key = base + 4 * u + int(lane >> 3);
      valid[u] = key < count;
      bool old = valid[u] && key != slot;
      load8(old ? ring_k + ring + key * 64 : k + fresh, dims, raw + 2 * u * WORDS);
      load8(old ? ring_v + ring + key * 64 : v + fresh, dims, raw + (2 * u + 1) * WORDS);
      if (valid[u] && group == 0) {
        store8(next_k + ring, key * 8 + dims, raw + 2 * u * WORDS);
        store8(next_v + ring, key * 8 + dims, raw + (2 * u + 1) * WORDS);
      }
    }
    attend<UNROLL>(ring_k, queries, raw, valid, m, l, acc);
  }
  device float* to = FINAL ? out + head * 64 : out + head * ATTEND_PART;
  finish<SIMDGROUPS, FINAL>(m, l, acc, sinks + head, heads, 0, 1, memory, stats, simdgroup_index_in_threadgroup, lane, to);
}
