// computes     attention with sinks of one new position over the ring of the last WINDOW positions, itself included;
//              writes it into the ring.
// shapes       q [S, KV_HEADS * HEADS, 64] f32 and k, v [S, KV_HEADS, 64], of which row lengths[4] is used; ring_k,
//              ring_v [KV_HEADS, WINDOW, 64], position p in slot p % WINDOW; sinks [KV_HEADS * HEADS]; lengths i32 [8],
//              lengths[0] positions written so far; next_k, next_v the ring afterwards, slots never written undefined;
//              out: FINAL [KV_HEADS * HEADS, 64] f32, else parts [KV_HEADS * HEADS, 1, 68] for attention_merge.
// grid         KV_HEADS * ceil(HEADS / 8) threadgroups.
// threadgroup  32 SIMDGROUPS threads; a tile of keys and values, the queries and a tile's scores in threadgroup memory.
// bytes        every valid slot of K and V read once and written once.
// why          the window is exact by construction: the new position takes the slot of the one that leaves. A window is
//              too short for many threadgroups, so the heads of a group share its tile: a thread scores one key, then a
//              simdgroup weighs the values for one head.
// reference    mlx_gptoss/kernels/attention.py, attention_sliding_twin.
#include "attend.h"

// Keys in a tile: 16 UNROLL, as far as two tiles fit in threadgroup memory.
constexpr int sliding_tile(int unroll, int bytes) {
  return 16 * unroll * bytes > 128 ? 128 / bytes : 16 * unroll;
}

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
  constexpr int TILE = sliding_tile(UNROLL, sizeof(T));
  constexpr int THREADS = 32 * SIMDGROUPS;
  constexpr int GROUPS = (HEADS + 7) / 8;
  constexpr int WORDS = 2 * sizeof(T);                      // of 8 values
  constexpr int PITCH = 8 * WORDS + 4;                      // words from row to row: neighbours start 4 banks apart
  constexpr int EACH = (TILE * 8 + THREADS - 1) / THREADS;  // pieces of 8 values a thread stages
  constexpr int SCORERS = THREADS < TILE ? THREADS : TILE;
  constexpr int OWN = (8 + SIMDGROUPS - 1) / SIMDGROUPS;    // heads a simdgroup weighs values for
  threadgroup uint4 staged_k[TILE * PITCH / 4];
  threadgroup uint4 staged_v[TILE * PITCH / 4];
  threadgroup float4 queries[8 * 16];
  threadgroup float scores[8 * TILE];
  int lane = int(thread_index_in_simdgroup);
  int simdgroup = int(simdgroup_index_in_threadgroup);
  int t = simdgroup * 32 + lane;
  int kv = int(threadgroup_position_in_grid.x) / GROUPS;
  int group = int(threadgroup_position_in_grid.x) % GROUPS;
  int heads = metal::min(HEADS - 8 * group, 8);
  int head = kv * HEADS + 8 * group;
  int row = lengths[4];
  int position = lengths[0];
  int slot = position % WINDOW;
  int count = metal::min(position + 1, WINDOW);
  int fresh = (row * KV_HEADS + kv) * 64;
  int ring = kv * WINDOW * 64;
  threadgroup uint* words_k = (threadgroup uint*)staged_k;
  threadgroup uint* words_v = (threadgroup uint*)staged_v;
  float m[OWN];
  float l[OWN];
  float2 acc[OWN];
#pragma clang loop unroll(full)
  for (int o = 0; o < OWN; ++o) {
    m[o] = -1e30f;
    l[o] = 0.0f;
    acc[o] = float2(0.0f);
  }
  for (int i = t; i < heads * 16; i += THREADS) {
    queries[i] = read4(q, (row * KV_HEADS * HEADS + head) * 16 + i) * (0.125f * 1.44269504f);
  }
#pragma clang loop unroll(disable)
  for (int base = 0; base < count; base += TILE) {
    uint raw[2 * EACH * WORDS];
#pragma clang loop unroll(full)
    for (int e = 0; e < EACH; ++e) {
      int piece = e * THREADS + t;
      int key = base + piece / 8;
#pragma clang loop unroll(full)
      for (int i = 0; i < 2 * WORDS; ++i) {
        raw[2 * e * WORDS + i] = 0;
      }
      if (piece < TILE * 8 && key < count) {
        bool old = key != slot;
        load8(old ? ring_k + ring + key * 64 : k + fresh, piece % 8, raw + 2 * e * WORDS);
        load8(old ? ring_v + ring + key * 64 : v + fresh, piece % 8, raw + (2 * e + 1) * WORDS);
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
#pragma clang loop unroll(full)
    for (int e = 0; e < EACH; ++e) {
      int piece = e * THREADS + t;
      int key = base + piece / 8;
      if (piece < TILE * 8) {
        int at = piece / 8 * PITCH + piece % 8 * WORDS;
#pragma clang loop unroll(full)
        for (int i = 0; i < WORDS; i += 4) {
          int from = 2 * e * WORDS + i;
          staged_k[(at + i) / 4] = uint4(raw[from], raw[from + 1], raw[from + 2], raw[from + 3]);
          from += WORDS;
          staged_v[(at + i) / 4] = uint4(raw[from], raw[from + 1], raw[from + 2], raw[from + 3]);
        }
        if (key < count && group == 0) {
          store8(next_k + ring, key * 8 + piece % 8, raw + 2 * e * WORDS);
          store8(next_v + ring, key * 8 + piece % 8, raw + (2 * e + 1) * WORDS);
        }
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    // Scores: a thread takes a key, and every (THREADS / SCORERS)-th head.
    for (int key = t % SCORERS; key < TILE; key += SCORERS) {
      float sums[8];
#pragma clang loop unroll(full)
      for (int i = 0; i < 8; ++i) {
        sums[i] = 0.0f;
      }
#pragma clang loop unroll(disable)
      for (int d = 0; d < 8; ++d) {
        uint word[WORDS];
        float x[8];
#pragma clang loop unroll(full)
        for (int i = 0; i < WORDS; i += 4) {
          uint4 four = staged_k[(key * PITCH + d * WORDS + i) / 4];
          word[i] = four.x;
          word[i + 1] = four.y;
          word[i + 2] = four.z;
          word[i + 3] = four.w;
        }
        unpack8(ring_k, word, x);
#pragma clang loop unroll(full)
        for (int i = 0; i < 8; ++i) {
          int h = t / SCORERS + i * (THREADS / SCORERS);
          if (i * (THREADS / SCORERS) < 8 && h < heads) {
            float4 a = queries[h * 16 + 2 * d];
            float4 b = queries[h * 16 + 2 * d + 1];
            float sum = metal::fma(a.x, x[0], sums[i]);
            sum = metal::fma(a.y, x[1], sum);
            sum = metal::fma(a.z, x[2], sum);
            sum = metal::fma(a.w, x[3], sum);
            sum = metal::fma(b.x, x[4], sum);
            sum = metal::fma(b.y, x[5], sum);
            sum = metal::fma(b.z, x[6], sum);
            sums[i] = metal::fma(b.w, x[7], sum);
          }
        }
      }
#pragma clang loop unroll(full)
      for (int i = 0; i < 8; ++i) {
        int h = t / SCORERS + i * (THREADS / SCORERS);
        if (i * (THREADS / SCORERS) < 8 && h < heads) {
          scores[h * TILE + key] = base + key < count ? sums[i] : no_score();
        }
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    // Values: a simdgroup takes a head, a lane two of its dimensions.
#pragma clang loop unroll(full)
    for (int o = 0; o < OWN; ++o) {
      int h = simdgroup + o * SIMDGROUPS;
      if (h < heads) {
        threadgroup float* mine = scores + h * TILE;
        float top = m[o];
        for (int key = lane; key < TILE; key += 32) {
          top = metal::max(top, mine[key]);
        }
        top = simd_max(top);
        float shrink = metal::fast::exp2(m[o] - top);
        float total = 0.0f;
        for (int key = lane; key < TILE; key += 32) {
          float weight = metal::fast::exp2(mine[key] - top);
          total += weight;
          mine[key] = weight;
        }
        m[o] = top;
        l[o] = l[o] * shrink + simd_sum(total);
        simdgroup_barrier(mem_flags::mem_threadgroup);
        float2 sum = acc[o] * shrink;
#pragma clang loop unroll_count(8)
        for (int key = 0; key < TILE; ++key) {
          float weight = mine[key];
          float2 x;
          if (WORDS == 8) {
            x = float2(
                as_type<float>(words_v[key * PITCH + 2 * lane]), as_type<float>(words_v[key * PITCH + 2 * lane + 1]));
          } else {
            x = unpack2(ring_v, words_v[key * PITCH + lane]);
          }
          sum = float2(metal::fma(weight, x.x, sum.x), metal::fma(weight, x.y, sum.y));
        }
        acc[o] = sum;
      }
    }
  }
#pragma clang loop unroll(full)
  for (int o = 0; o < OWN; ++o) {
    int h = simdgroup + o * SIMDGROUPS;
    if (h < heads) {
      if (FINAL) {
        float sink = float(sinks[head + h]) * 1.44269504f;
        float top = metal::max(m[o], sink);
        float shrink = metal::fast::exp2(m[o] - top);
        float share = shrink / (l[o] * shrink + metal::fast::exp2(sink - top));
        device float* to = out + (head + h) * 64 + 2 * lane;
        to[0] = acc[o].x * share;
        to[1] = acc[o].y * share;
      } else {
        device float* to = out + (head + h) * ATTEND_PART;
        to[2 * lane] = acc[o].x;
        to[2 * lane + 1] = acc[o].y;
        if (lane == 0) {
          to[ATTEND_DIM] = m[o];
          to[ATTEND_DIM + 1] = l[o];
        }
      }
    }
  }
}
