// computes     causal attention with sinks of L query positions over a cache, within a window or without.
// shapes       q [B, L, KV_HEADS * GROUP, 64]; k, v [B, KV_HEADS, C, 64]; sinks [KV_HEADS * GROUP];
//              params i32 [8]: L, C, the key of query 0 (query i sees keys 0 .. that + i), the window (0: none), KV_HEADS;
//              out [B, L, KV_HEADS * GROUP * 64].
// grid         ceil(L / (ROWS / GROUP)) x B KV_HEADS threadgroups, the longest first.
// threadgroup  128 threads. ROWS (128) rows, GROUP heads of ROWS / GROUP neighbouring positions; 26.5 KiB.
// bytes        K and V once for every ROWS / GROUP positions, only the blocks a query can see; q and out once.
// why          stock attention with sinks masks a full L x C product; this one skips blocks of keys outside the window,
//              so a sliding layer's cost is linear in L, and reads K and V once for all heads of a group.
// reference    mlx_gptoss/kernels/prefill_attention.py, prefill_attention_twin.
#include "tiles.h"

// A row's scores of one step of 32 keys, padded against bank conflicts; its probabilities take their place.
#define SCORE_STRIDE 36
#define WEIGHT_STRIDE 40
#define OUT_STRIDE 68

template <typename T, typename B, int GROUP>
[[kernel]] void prefill_attention(
    const device T* q [[buffer(0)]],
    const device T* k [[buffer(1)]],
    const device T* v [[buffer(2)]],
    const device B* sinks [[buffer(3)]],
    const device int* params [[buffer(4)]],
    device T* out [[buffer(5)]],
    uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]],
    uint3 threadgroups_per_grid [[threadgroups_per_grid]],
    uint simdgroup_index_in_threadgroup [[simdgroup_index_in_threadgroup]],
    uint thread_index_in_simdgroup [[thread_index_in_simdgroup]]) {
  constexpr int ROWS = 128;
  constexpr int SPAN = ROWS / GROUP;
  threadgroup uint4 keys[256];
  threadgroup uint4 values[256];
  threadgroup float4 scratch[4 * 32 * SCORE_STRIDE / 4];
  int lane = int(thread_index_in_simdgroup);
  int simdgroup = int(simdgroup_index_in_threadgroup);
  int length = params[0];
  int capacity = params[1];
  int window = params[3];
  int kv_heads = params[4];
  int heads = kv_heads * GROUP;
  int batch = int(threadgroup_position_in_grid.y) / kv_heads;
  int kv_head = int(threadgroup_position_in_grid.y) % kv_heads;
  int start = int(threadgroups_per_grid.x - 1 - threadgroup_position_in_grid.x) * SPAN;
  threadgroup float* score = (threadgroup float*)scratch + simdgroup * 32 * SCORE_STRIDE;
  threadgroup T* weight = (threadgroup T*)score;

  // This simdgroup's 32 rows of q, 64 wide, as 4 x 8 blocks; rows beyond the end repeat the last position.
  simdgroup_matrix<T, 8, 8> query[4][8];
  {
    threadgroup uint4* staged = (threadgroup uint4*)score;
#pragma clang loop unroll(full)
    for (int i = 0; i < 8; ++i) {
      int r = i / 2 * 8 + lane % 8;
      int chunk = i % 2 * 4 + lane / 8;
      int row = simdgroup * 32 + r;
      int position = metal::min(start + row / GROUP, length - 1);
      int head = kv_head * GROUP + row % GROUP;
      const device T* from = q + ((size_t(batch) * length + position) * heads + head) * 64;
      staged[(r / 8 * 8 + chunk) * 8 + r % 8] = ((const device uint4*)from)[chunk];
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
#pragma clang loop unroll(full)
    for (int i = 0; i < 4; i += 2) {
#pragma clang loop unroll(full)
      for (int j = 0; j < 8; j += 2) {
        load_left(
            query[i][j], query[i][j + 1], query[i + 1][j], query[i + 1][j + 1], weight + (i * 8 + j) * 64, 8, 64, 512);
      }
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
  }

  // Lane r keeps row r's softmax: `top`, the score that stands for 1, and `total`, the denominator, the sink in both.
  int row = simdgroup * 32 + lane;
  int last_key = params[2] + metal::min(start + row / GROUP, length - 1);
  int first_key = window > 0 ? metal::max(last_key - window + 1, 0) : 0;
  float scale = 0.125f * 1.44269504f;
  float top = float(sinks[kv_head * GROUP + row % GROUP]) * 1.44269504f;
  float total = 1.0f;
  simdgroup_matrix<float, 8, 8> sum[4][8];
#pragma clang loop unroll(full)
  for (int i = 0; i < 4; ++i) {
#pragma clang loop unroll(full)
    for (int j = 0; j < 8; ++j) {
      sum[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    }
  }

  int from_key = window > 0 ? metal::max(params[2] + start - window + 1, 0) : 0;
  int to_key = params[2] + metal::min(start + SPAN, length);
  const device T* k_head = k + (size_t(batch) * kv_heads + kv_head) * capacity * 64;
  const device T* v_head = v + (size_t(batch) * kv_heads + kv_head) * capacity * 64;
  // Two uint4s of K and of V a thread: simdgroup `s` keys 8 s .. 8 s + 7, chunks lane / 8 and 4 further.
  uint4 next[4];
  int block_key = from_key / 32 * 32;
  {
    int at = metal::min(block_key + simdgroup * 8 + lane % 8, to_key - 1);
    const device uint4* from_k = (const device uint4*)(k_head + size_t(at) * 64) + lane / 8;
    const device uint4* from_v = (const device uint4*)(v_head + size_t(at) * 64) + lane / 8;
    next[0] = from_k[0];
    next[1] = from_k[4];
    next[2] = from_v[0];
    next[3] = from_v[4];
  }
  for (; block_key < to_key; block_key += 32) {
    keys[(simdgroup * 8 + lane / 8) * 8 + lane % 8] = next[0];
    keys[(simdgroup * 8 + lane / 8 + 4) * 8 + lane % 8] = next[1];
    values[(simdgroup * 8 + lane / 8) * 8 + lane % 8] = next[2];
    values[(simdgroup * 8 + lane / 8 + 4) * 8 + lane % 8] = next[3];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (block_key + 32 < to_key) {
      int at = metal::min(block_key + 32 + simdgroup * 8 + lane % 8, to_key - 1);
      const device uint4* from_k = (const device uint4*)(k_head + size_t(at) * 64) + lane / 8;
      const device uint4* from_v = (const device uint4*)(v_head + size_t(at) * 64) + lane / 8;
      next[0] = from_k[0];
      next[1] = from_k[4];
      next[2] = from_v[0];
      next[3] = from_v[4];
    }

    // Scores: 32 rows x 32 keys.
    const threadgroup T* key_blocks = (const threadgroup T*)keys;
#pragma clang loop unroll(full)
    for (int n = 0; n < 4; n += 2) {
      simdgroup_matrix<float, 8, 8> s[4][2];
#pragma clang loop unroll(full)
      for (int i = 0; i < 4; ++i) {
        s[i][0] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
        s[i][1] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
      }
#pragma clang loop unroll(full)
      for (int d = 0; d < 8; d += 2) {
        simdgroup_matrix<T, 8, 8> b[2][2];
        load_right<true>(b[0][0], b[0][1], b[1][0], b[1][1], key_blocks + (n * 8 + d) * 64, 8, 64, 512);
#pragma clang loop unroll(full)
        for (int i = 0; i < 4; i += 2) {
#pragma clang loop unroll(full)
          for (int j = 0; j < 2; ++j) {
            multiply_16x8x16<T>(
                s[i][j], s[i + 1][j], query[i][d], query[i][d + 1], query[i + 1][d], query[i + 1][d + 1], b[j][0],
                b[j][1]);
          }
        }
      }
#pragma clang loop unroll(full)
      for (int i = 0; i < 4; ++i) {
        simdgroup_store(s[i][0], score + i * 8 * SCORE_STRIDE + n * 8, SCORE_STRIDE);
        simdgroup_store(s[i][1], score + i * 8 * SCORE_STRIDE + n * 8 + 8, SCORE_STRIDE);
      }
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);

    float4 p[8];
    float best = top;
#pragma clang loop unroll(full)
    for (int i = 0; i < 8; ++i) {
      p[i] = ((const threadgroup float4*)(score + lane * SCORE_STRIDE))[i];
#pragma clang loop unroll(full)
      for (int j = 0; j < 4; ++j) {
        int key = block_key + 4 * i + j;
        p[i][j] = key >= first_key && key <= last_key ? p[i][j] * scale : -1.0e30f;
        best = metal::max(best, p[i][j]);
      }
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    // A score may pass `top` by 8 (a weight of 256) before the sums are brought to a new one: rarely.
    if (simd_any(best > top + 8.0f)) {
      float shrink = metal::exp2(top - best);
      top = best;
      total *= shrink;
#pragma clang loop unroll(full)
      for (int i = 0; i < 4; ++i) {
        float factor = simd_shuffle(shrink, ushort(i * 8 + lane / 4));
        threadgroup float* strip = score + lane / 4 * OUT_STRIDE + lane % 4 * 16;
#pragma clang loop unroll(full)
        for (int j = 0; j < 8; ++j) {
          simdgroup_store(sum[i][j], score + j * 8, OUT_STRIDE);
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
#pragma clang loop unroll(full)
        for (int j = 0; j < 16; ++j) {
          strip[j] *= factor;
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
#pragma clang loop unroll(full)
        for (int j = 0; j < 8; ++j) {
          simdgroup_load(sum[i][j], score + j * 8, OUT_STRIDE);
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
      }
    }
    threadgroup uint2* row_weights = (threadgroup uint2*)(weight + lane * WEIGHT_STRIDE);
#pragma clang loop unroll(full)
    for (int i = 0; i < 8; ++i) {
      float4 e;
      e.x = metal::fast::exp2(p[i].x - top);
      e.y = metal::fast::exp2(p[i].y - top);
      e.z = metal::fast::exp2(p[i].z - top);
      e.w = metal::fast::exp2(p[i].w - top);
      total += (e.x + e.y) + (e.z + e.w);
      uint2 packed;
      packed.x = pack2<T>(e.x, e.y);
      packed.y = pack2<T>(e.z, e.w);
      row_weights[i] = packed;
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);

    // Sums: 32 rows x 64.
    const threadgroup T* value_blocks = (const threadgroup T*)values;
#pragma clang loop unroll(full)
    for (int n = 0; n < 4; n += 2) {
      simdgroup_matrix<T, 8, 8> a[4][2];
#pragma clang loop unroll(full)
      for (int i = 0; i < 4; i += 2) {
        load_left(
            a[i][0], a[i][1], a[i + 1][0], a[i + 1][1], weight + i * 8 * WEIGHT_STRIDE + n * 8, WEIGHT_STRIDE, 8,
            8 * WEIGHT_STRIDE);
      }
#pragma clang loop unroll(full)
      for (int d = 0; d < 8; d += 2) {
        simdgroup_matrix<T, 8, 8> b[2][2];
        load_right<false>(b[0][0], b[0][1], b[1][0], b[1][1], value_blocks + (n * 8 + d) * 64, 8, 512, 64);
#pragma clang loop unroll(full)
        for (int i = 0; i < 4; i += 2) {
#pragma clang loop unroll(full)
          for (int j = 0; j < 2; ++j) {
            multiply_16x8x16<T>(
                sum[i][d + j], sum[i + 1][d + j], a[i][0], a[i][1], a[i + 1][0], a[i + 1][1], b[j][0], b[j][1]);
          }
        }
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }

  float norm = 1.0f / total;
#pragma clang loop unroll(full)
  for (int i = 0; i < 4; ++i) {
    float factor = simd_shuffle(norm, ushort(i * 8 + lane / 4));
#pragma clang loop unroll(full)
    for (int j = 0; j < 8; ++j) {
      simdgroup_store(sum[i][j], score + j * 8, OUT_STRIDE);
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    int r = simdgroup * 32 + i * 8 + lane / 4;
    int position = start + r / GROUP;
    if (position < length) {
      const threadgroup float* strip = score + lane / 4 * OUT_STRIDE + lane % 4 * 16;
      int head = kv_head * GROUP + r % GROUP;
      device uint* to = (device uint*)(out + ((size_t(batch) * length + position) * heads + head) * 64 + lane % 4 * 16);
#pragma clang loop unroll(full)
      for (int j = 0; j < 8; ++j) {
        to[j] = pack2<T>(strip[2 * j] * factor, strip[2 * j + 1] * factor);
      }
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
  }
}
