// One query position's attention over a stream of keys: up to 8 query heads that share a key/value head, head_dim 64.
//
// A key is 8 lanes wide (8 values a lane, 16 bytes in bf16), so a simdgroup reads 4 neighbouring keys at a time, once for
// all heads. The 8 heads' partial scores are reduced over the 8 lanes by a transposing butterfly of 7 shuffles, which
// leaves head `lane % 8` in each lane. The softmax is online, in powers of two: q is scaled by log2(e) / sqrt(64).
#pragma once
#include "common.h"

#define ATTEND_HEADS 8
#define ATTEND_DIM 64
// Floats of one head's part: 64 sums, their maximum score, their denominator, 2 of padding.
#define ATTEND_PART 68

METAL_FUNC float no_score() {
  return as_type<float>(0xff800000u);
}

// This lane's 8 values of each of the 8 heads; heads from `heads` on read as zero.
METAL_FUNC void load_queries(const device float* q, int heads, uint lane, thread float* out) {
#pragma clang loop unroll(full)
  for (int h = 0; h < ATTEND_HEADS; ++h) {
#pragma clang loop unroll(full)
    for (int i = 0; i < 8; ++i) {
      out[8 * h + i] = 0.0f;
    }
    if (h < heads) {
      read8(q, h * 8 + int(lane & 7u), out + 8 * h);
    }
#pragma clang loop unroll(full)
    for (int i = 0; i < 8; ++i) {
      out[8 * h + i] *= 0.125f * 1.44269504f;
    }
  }
}

// Half of the `count` values go to the lane across `bit`, which keeps the upper half when its own bit is set.
template <int COUNT>
METAL_FUNC void fold(thread float* x, uint lane, uint bit) {
  bool upper = (lane & bit) != 0;
#pragma clang loop unroll(full)
  for (int i = 0; i < COUNT / 2; ++i) {
    float mine = upper ? x[i + COUNT / 2] : x[i];
    float other = upper ? x[i] : x[i + COUNT / 2];
    x[i] = mine + simd_shuffle_xor(other, ushort(bit));
  }
}

// Takes 4 U keys: lane group lane / 8 holds keys 4 u + lane / 8, this lane 8 values of each key and value, as `raw` from
// load8. `m` and `l` are the maximum and this lane's share of the denominator for head lane % 8; acc [8 heads][8 values]
// this lane's share of the sums. `type` only says the cache's type.
template <int U, typename T>
METAL_FUNC void attend(
    const device T* type,
    const thread float* q,
    const thread uint* raw,
    const thread bool* valid,
    uint lane,
    thread float& m,
    thread float& l,
    thread float* acc) {
  constexpr int WORDS = 2 * sizeof(T);
  float score[U];
  float top = m;
#pragma clang loop unroll(full)
  for (int u = 0; u < U; ++u) {
    float part[ATTEND_HEADS];
    float k[8];
    unpack8(type, raw + 2 * u * WORDS, k);
#pragma clang loop unroll(full)
    for (int h = 0; h < ATTEND_HEADS; ++h) {
      float sum = 0.0f;
#pragma clang loop unroll(full)
      for (int i = 0; i < 8; ++i) {
        sum = metal::fma(q[8 * h + i], k[i], sum);
      }
      part[h] = sum;
    }
    fold<8>(part, lane, 4);
    fold<4>(part, lane, 2);
    fold<2>(part, lane, 1);
    score[u] = valid[u] ? part[0] : no_score();
    top = metal::max(top, score[u]);
  }
  top = metal::max(top, simd_shuffle_xor(top, ushort(8)));
  top = metal::max(top, simd_shuffle_xor(top, ushort(16)));
  float shrink = metal::exp2(m - top);
  ushort group = ushort(lane & 24u);
  if (simd_any(top > m)) {
    l *= shrink;
#pragma clang loop unroll(full)
    for (int h = 0; h < ATTEND_HEADS; ++h) {
      float factor = simd_shuffle(shrink, ushort(group + h));
#pragma clang loop unroll(full)
      for (int i = 0; i < 8; ++i) {
        acc[8 * h + i] *= factor;
      }
    }
  }
  m = top;
#pragma clang loop unroll(full)
  for (int u = 0; u < U; ++u) {
    float p = metal::exp2(score[u] - top);
    float v[8];
    unpack8(type, raw + (2 * u + 1) * WORDS, v);
    l += p;
#pragma clang loop unroll(full)
    for (int h = 0; h < ATTEND_HEADS; ++h) {
      float weight = simd_shuffle(p, ushort(group + h));
#pragma clang loop unroll(full)
      for (int i = 0; i < 8; ++i) {
        acc[8 * h + i] = metal::fma(weight, v[i], acc[8 * h + i]);
      }
    }
  }
}

// Floats of threadgroup memory that `finish` needs.
constexpr int attend_memory(int simdgroups) {
  return simdgroups * ATTEND_HEADS * (ATTEND_DIM + 2);
}

// Adds up the simdgroups of a threadgroup and writes `heads` heads: with FINAL the attention itself, [heads, 64], the
// sink counted here; else parts for the merge kernel, [heads, part_stride, 68] at part `part`.
template <int SIMDGROUPS, bool FINAL, typename B>
METAL_FUNC void finish(
    float m,
    float l,
    thread float* acc,
    const device B* sinks,
    int heads,
    int part,
    int part_stride,
    threadgroup float* memory,
    uint simdgroup,
    uint lane,
    device float* out) {
  l += simd_shuffle_xor(l, ushort(8));
  l += simd_shuffle_xor(l, ushort(16));
  fold<64>(acc, lane, 16);
  fold<32>(acc, lane, 8);
  threadgroup float* stats = memory + SIMDGROUPS * ATTEND_HEADS * ATTEND_DIM;
  int head = int((lane >> 4) & 1u) * 4 + int((lane >> 3) & 1u) * 2;
  threadgroup float* mine = memory + int(simdgroup) * ATTEND_HEADS * ATTEND_DIM + head * ATTEND_DIM + int(lane & 7u) * 8;
#pragma clang loop unroll(full)
  for (int i = 0; i < 8; ++i) {
    mine[i] = acc[i];
    mine[ATTEND_DIM + i] = acc[8 + i];
  }
  if (lane < 8) {
    stats[(int(simdgroup) * ATTEND_HEADS + int(lane)) * 2] = m;
    stats[(int(simdgroup) * ATTEND_HEADS + int(lane)) * 2 + 1] = l;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (int i = int(simdgroup * 32 + lane); i < heads * ATTEND_DIM; i += 32 * SIMDGROUPS) {
    int h = i / ATTEND_DIM;
    int d = i % ATTEND_DIM;
    float sink = FINAL ? float(sinks[h]) * 1.44269504f : no_score();
    float top = sink;
    for (int g = 0; g < SIMDGROUPS; ++g) {
      top = metal::max(top, stats[(g * ATTEND_HEADS + h) * 2]);
    }
    float sum = 0.0f;
    float denominator = FINAL ? metal::exp2(sink - top) : 0.0f;
    for (int g = 0; g < SIMDGROUPS; ++g) {
      float factor = metal::exp2(stats[(g * ATTEND_HEADS + h) * 2] - top);
      denominator += factor * stats[(g * ATTEND_HEADS + h) * 2 + 1];
      sum += factor * memory[(g * ATTEND_HEADS + h) * ATTEND_DIM + d];
    }
    if (FINAL) {
      out[h * ATTEND_DIM + d] = sum / denominator;
    } else {
      device float* to = out + (h * part_stride + part) * ATTEND_PART;
      to[d] = sum;
      if (d == 0) {
        to[ATTEND_DIM] = top;
        to[ATTEND_DIM + 1] = denominator;
      }
    }
  }
}
