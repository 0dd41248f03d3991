// One query position's attention over a stream of keys: up to 8 query heads that share a key/value head, head_dim 64.
//
// A key is 8 lanes wide (8 values a lane, 16 bytes in bf16), so a simdgroup reads 4 neighbouring keys at a time, once
// for all heads. Lane d of the 8 keeps the heads in the order d, d ^ 1, d ^ 2 ... d ^ 7: the lanes' partial scores are
// then added by 4 + 2 + 1 shuffles that need no choice of what to exchange (a choice beside a shuffle invites a
// compiler to branch around it), and lane d ends with head d's score, one of its own a key. The weights pass through
// threadgroup memory; for the values a lane holds two of the 64 dimensions and all keys, so that the lanes have
// nothing to add up at the end. The softmax is online, in powers of two.
#pragma once
#include "eights.h"

#define ATTEND_HEADS 8
#define ATTEND_DIM 64
// Floats of one head's part: 64 sums, their maximum score, their denominator, 2 of padding.
#define ATTEND_PART 68
// float4s of threadgroup memory a simdgroup has for its sums in `finish`, and for weights of up to 60 keys before.
#define ATTEND_MEMORY (ATTEND_HEADS * ATTEND_DIM / 4)

METAL_FUNC float no_score() {
  return as_type<float>(0xff800000u);
}

// The words of two values of type T, from element 2 i.
METAL_FUNC void load2(const device float* x, int i, thread uint* raw) {
  uint2 two = ((const device uint2*)x)[i];
  raw[0] = two.x;
  raw[1] = two.y;
}

METAL_FUNC void load2(const device half* x, int i, thread uint* raw) {
  raw[0] = ((const device uint*)x)[i];
}

METAL_FUNC void load2(const device bfloat16_t* x, int i, thread uint* raw) {
  raw[0] = ((const device uint*)x)[i];
}

// The same as floats; the pointer only says their type.
METAL_FUNC float2 unpack_two(const device float*, const thread uint* raw) {
  return float2(as_type<float>(raw[0]), as_type<float>(raw[1]));
}

METAL_FUNC float2 unpack_two(const device half* type, const thread uint* raw) {
  return unpack2(type, raw[0]);
}

METAL_FUNC float2 unpack_two(const device bfloat16_t* type, const thread uint* raw) {
  return unpack2(type, raw[0]);
}

// Puts what load2 took at element 2 i.
METAL_FUNC void store2(device float* x, int i, const thread uint* raw) {
  x[2 * i] = as_type<float>(raw[0]);
  x[2 * i + 1] = as_type<float>(raw[1]);
}

METAL_FUNC void store2(device half* x, int i, const thread uint* raw) {
  ((device uint*)x)[i] = raw[0];
}

METAL_FUNC void store2(device bfloat16_t* x, int i, const thread uint* raw) {
  ((device uint*)x)[i] = raw[0];
}

// This lane's 8 values of each of the 8 heads, head (lane % 8) ^ j at 8 j; heads from `heads` on read as zero.
METAL_FUNC void load_queries(const device float* q, int heads, uint lane, thread float* out) {
  int dims = int(lane & 7u);
#pragma clang loop unroll(full)
  for (int j = 0; j < ATTEND_HEADS; ++j) {
    int h = dims ^ j;
#pragma clang loop unroll(full)
    for (int i = 0; i < 8; ++i) {
      out[8 * j + i] = 0.0f;
    }
    if (h < heads) {
      read8(q + h * ATTEND_DIM + dims * 8, 0, out + 8 * j);
    }
  }
}

// Scores of 4 U keys, times log2(e) / sqrt(64): `raw` holds this lane's 8 values of keys 4 u + lane / 8 as from load8,
// out[u] becomes the score of that key and head lane % 8. The barrier tells compilers that the simdgroup is together.
template <int U, typename T>
METAL_FUNC void score_keys(const device T* type, const thread float* q, const thread uint* raw, thread float* out) {
  constexpr int WORDS = 2 * sizeof(T);
  float sums[U * ATTEND_HEADS];
#pragma clang loop unroll(full)
  for (int u = 0; u < U; ++u) {
    float k[8];
    unpack8(type, raw + u * WORDS, k);
#pragma clang loop unroll(full)
    for (int j = 0; j < ATTEND_HEADS; ++j) {
      float sum = q[8 * j] * k[0];
#pragma clang loop unroll(full)
      for (int i = 1; i < 8; ++i) {
        sum = metal::fma(q[8 * j + i], k[i], sum);
      }
      sums[ATTEND_HEADS * u + j] = sum;
    }
  }
  simdgroup_barrier(mem_flags::mem_none);
#pragma clang loop unroll(full)
  for (int bit = 4; bit > 0; bit /= 2) {
#pragma clang loop unroll(full)
    for (int u = 0; u < U; ++u) {
#pragma clang loop unroll(full)
      for (int j = 0; j < bit; ++j) {
        sums[ATTEND_HEADS * u + j] += simd_shuffle_xor(sums[ATTEND_HEADS * u + j + bit], ushort(bit));
      }
    }
  }
#pragma clang loop unroll(full)
  for (int u = 0; u < U; ++u) {
    out[u] = sums[ATTEND_HEADS * u] * (0.125f * 1.44269504f);
  }
}

// Turns the scores of 4 U keys into weights in the simdgroup's `memory`, behind them by how much old sums shrink. `m`
// is the maximum of head lane % 8, the same in all 4 lanes of that head, `l` this lane's share of its denominator.
template <int U>
METAL_FUNC void weigh_keys(
    thread float* score, uint lane, thread float& m, thread float& l, threadgroup float4* memory) {
  threadgroup float* weights = (threadgroup float*)memory;
  float top = m;
#pragma clang loop unroll(full)
  for (int u = 0; u < U; ++u) {
    top = metal::max(top, score[u]);
  }
  top = metal::max(top, simd_shuffle_xor(top, ushort(8)));
  top = metal::max(top, simd_shuffle_xor(top, ushort(16)));
  float shrink = metal::fast::exp2(m - top);
  m = top;
  l *= shrink;
#pragma clang loop unroll(full)
  for (int u = 0; u < U; ++u) {
    float weight = metal::fast::exp2(score[u] - top);
    l += weight;
    weights[32 * u + int(lane)] = weight;
  }
  weights[32 * U + int(lane)] = shrink;
  simdgroup_barrier(mem_flags::mem_threadgroup);
}

// Adds 4 U weighted values: `raw` holds two values of each key in order as from load2, acc[h] two sums of head h.
template <int U, typename T>
METAL_FUNC void add_values(
    const device T* type, const thread uint* raw, const threadgroup float4* memory, thread float2* acc) {
  constexpr int WORDS = sizeof(T) / 2;
#pragma clang loop unroll(full)
  for (int key = -1; key < 4 * U; ++key) {
    int at = 2 * (key < 0 ? 4 * U : key);
    float4 a = memory[at];
    float4 b = memory[at + 1];
    float weight[8] = {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w};
    float2 x = unpack_two(type, raw + (key < 0 ? 0 : key) * WORDS);
#pragma clang loop unroll(full)
    for (int h = 0; h < ATTEND_HEADS; ++h) {
      acc[h] = key < 0
          ? acc[h] * weight[h]
          : float2(metal::fma(weight[h], x.x, acc[h].x), metal::fma(weight[h], x.y, acc[h].y));
    }
  }
}

// Adds up the simdgroups of a threadgroup and writes `heads` heads: with FINAL the attention itself, [heads, 64], the
// sink counted here; else parts for the merge kernel, [heads, part_stride, 68] at part `part`.
template <int SIMDGROUPS, bool FINAL, typename B>
METAL_FUNC void finish(
    float m,
    float l,
    const thread float2* acc,
    const device B* sinks,
    int heads,
    int part,
    int part_stride,
    threadgroup float4* memory,
    threadgroup float2* stats,
    uint simdgroup,
    uint lane,
    device float* out) {
  // The last weights have been read.
  simdgroup_barrier(mem_flags::mem_threadgroup);
#pragma clang loop unroll(full)
  for (int h = 0; h < ATTEND_HEADS; ++h) {
    ((threadgroup float2*)memory)[(int(simdgroup) * ATTEND_HEADS + h) * (ATTEND_DIM / 2) + int(lane)] = acc[h];
  }
  l += simd_shuffle_xor(l, ushort(8));
  l += simd_shuffle_xor(l, ushort(16));
  if (lane < ATTEND_HEADS) {
    stats[int(simdgroup) * ATTEND_HEADS + int(lane)] = float2(m, l);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
#pragma clang loop unroll(disable)
  for (int i = int(simdgroup * 32 + lane); i < heads * (ATTEND_DIM / 4); i += 32 * SIMDGROUPS) {
    int h = i / (ATTEND_DIM / 4);
    int d = i % (ATTEND_DIM / 4);
    float sink = FINAL ? float(sinks[h]) * 1.44269504f : no_score();
    float top = sink;
    float2 stat[SIMDGROUPS];
    float4 sums[SIMDGROUPS];
#pragma clang loop unroll(full)
    for (int g = 0; g < SIMDGROUPS; ++g) {
      stat[g] = stats[g * ATTEND_HEADS + h];
      sums[g] = memory[g * ATTEND_MEMORY + i];
      top = metal::max(top, stat[g].x);
    }
    float4 sum = float4(0.0f);
    float denominator = FINAL ? metal::fast::exp2(sink - top) : 0.0f;
#pragma clang loop unroll(full)
    for (int g = 0; g < SIMDGROUPS; ++g) {
      float factor = metal::fast::exp2(stat[g].x - top);
      denominator = metal::fma(factor, stat[g].y, denominator);
      sum = sum + sums[g] * factor;
    }
    if (FINAL) {
      ((device float4*)out)[i] = sum * (1.0f / denominator);
    } else {
      device float* to = out + (h * part_stride + part) * ATTEND_PART;
      ((device float4*)to)[d] = sum;
      if (d == 0) {
        to[ATTEND_DIM] = top;
        to[ATTEND_DIM + 1] = denominator;
      }
    }
  }
}
