// One query position's attention over a stream of keys: up to 8 query heads that share a key/value head, head_dim 64.
//
// A key is 8 lanes wide (8 values a lane, 16 bytes in bf16), so a simdgroup reads 4 neighbouring keys at a time, once for
// all heads. Each head's score is a butterfly over the 8 lanes, which leaves it in all of them: no lane has to choose
// which value to exchange (a choice beside a shuffle invites a compiler to branch around it), and the weights of the
// values need no broadcast. The barriers before the butterflies tell compilers that the simdgroup is together. The softmax is online, in powers of two: q is scaled by log2(e) / sqrt(64). The 4 groups of
// 8 lanes each keep their own maximum until the end.
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

// Takes 4 U keys: lane group lane / 8 holds keys 4 u + lane / 8, this lane 8 values of each key and value, as `raw` from
// load8. For each head, `m` is this lane group's maximum, `l` its denominator, acc [8 heads][8 values] its sums. `type`
// only says the cache's type.
template <int U, typename T>
METAL_FUNC void attend(
    const device T* type,
    const thread float* q,
    const thread uint* raw,
    const thread bool* valid,
    thread float* m,
    thread float* l,
    thread float* acc) {
  constexpr int WORDS = 2 * sizeof(T);
  float score[U * ATTEND_HEADS];
#pragma clang loop unroll(full)
  for (int u = 0; u < U; ++u) {
    float k[8];
    unpack8(type, raw + 2 * u * WORDS, k);
#pragma clang loop unroll(full)
    for (int h = 0; h < ATTEND_HEADS; ++h) {
      float sum = q[8 * h] * k[0];
#pragma clang loop unroll(full)
      for (int i = 1; i < 8; ++i) {
        sum = metal::fma(q[8 * h + i], k[i], sum);
      }
      score[ATTEND_HEADS * u + h] = sum;
    }
  }
  simdgroup_barrier(mem_flags::mem_none);
#pragma clang loop unroll(full)
  for (int bit = 4; bit > 0; bit /= 2) {
#pragma clang loop unroll(full)
    for (int i = 0; i < U * ATTEND_HEADS; ++i) {
      score[i] += simd_shuffle_xor(score[i], ushort(bit));
    }
  }
  float top[ATTEND_HEADS];
  bool grows = false;
#pragma clang loop unroll(full)
  for (int h = 0; h < ATTEND_HEADS; ++h) {
    top[h] = m[h];
#pragma clang loop unroll(full)
    for (int u = 0; u < U; ++u) {
      score[ATTEND_HEADS * u + h] = valid[u] ? score[ATTEND_HEADS * u + h] : no_score();
      top[h] = metal::max(top[h], score[ATTEND_HEADS * u + h]);
    }
    grows = grows || top[h] > m[h];
  }
  if (simd_any(grows)) {
#pragma clang loop unroll(full)
    for (int h = 0; h < ATTEND_HEADS; ++h) {
      float shrink = metal::fast::exp2(m[h] - top[h]);
      m[h] = top[h];
      l[h] *= shrink;
#pragma clang loop unroll(full)
      for (int i = 0; i < 8; ++i) {
        acc[8 * h + i] *= shrink;
      }
    }
  }
#pragma clang loop unroll(full)
  for (int u = 0; u < U; ++u) {
    float v[8];
    unpack8(type, raw + (2 * u + 1) * WORDS, v);
#pragma clang loop unroll(full)
    for (int h = 0; h < ATTEND_HEADS; ++h) {
      float weight = metal::fast::exp2(score[ATTEND_HEADS * u + h] - m[h]);
      l[h] += weight;
#pragma clang loop unroll(full)
      for (int i = 0; i < 8; ++i) {
        acc[8 * h + i] = metal::fma(weight, v[i], acc[8 * h + i]);
      }
    }
  }
}

// float4s of threadgroup memory that `finish` needs for sums; it also needs 2 floats a simdgroup and head.
constexpr int attend_memory(int simdgroups) {
  return simdgroups * ATTEND_HEADS * ATTEND_DIM / 4;
}

// Adds up the simdgroups of a threadgroup and writes `heads` heads: with FINAL the attention itself, [heads, 64], the
// sink counted here; else parts for the merge kernel, [heads, part_stride, 68] at part `part`.
template <int SIMDGROUPS, bool FINAL, typename B>
METAL_FUNC void finish(
    thread float* m,
    thread float* l,
    thread float* acc,
    const device B* sinks,
    int heads,
    int part,
    int part_stride,
    threadgroup float4* memory,
    threadgroup float* stats,
    uint simdgroup,
    uint lane,
    device float* out) {
  simdgroup_barrier(mem_flags::mem_none);
#pragma clang loop unroll(full)
  for (int h = 0; h < ATTEND_HEADS; ++h) {
    float top = metal::max(m[h], simd_shuffle_xor(m[h], ushort(8)));
    top = metal::max(top, simd_shuffle_xor(top, ushort(16)));
    float shrink = metal::fast::exp2(m[h] - top);
    float total = l[h] * shrink;
    total += simd_shuffle_xor(total, ushort(8));
    total += simd_shuffle_xor(total, ushort(16));
    if (lane == 0) {
      stats[(int(simdgroup) * ATTEND_HEADS + h) * 2] = top;
      stats[(int(simdgroup) * ATTEND_HEADS + h) * 2 + 1] = total;
    }
#pragma clang loop unroll(full)
    for (int i = 0; i < 8; ++i) {
      acc[8 * h + i] *= shrink;
    }
  }
  // One lane group after the other adds its sums.
  threadgroup float4* mine = memory + int(simdgroup) * (ATTEND_HEADS * ATTEND_DIM / 4) + int(lane & 7u) * 2;
#pragma clang loop unroll(disable)
  for (uint g = 0; g < 4; ++g) {
    if (lane / 8 == g) {
#pragma clang loop unroll(full)
      for (int h = 0; h < ATTEND_HEADS; ++h) {
#pragma clang loop unroll(full)
        for (int j = 0; j < 2; ++j) {
          int i = 8 * h + 4 * j;
          float4 sum = float4(acc[i], acc[i + 1], acc[i + 2], acc[i + 3]);
          int at = h * (ATTEND_DIM / 4) + j;
          mine[at] = g == 0 ? sum : mine[at] + sum;
        }
      }
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
#pragma clang loop unroll(disable)
  for (int i = int(simdgroup * 32 + lane); i < heads * (ATTEND_DIM / 4); i += 32 * SIMDGROUPS) {
    int h = i / (ATTEND_DIM / 4);
    int d = i % (ATTEND_DIM / 4);
    float sink = FINAL ? float(sinks[h]) * 1.44269504f : no_score();
    float top = sink;
#pragma clang loop unroll(disable)
    for (int g = 0; g < SIMDGROUPS; ++g) {
      top = metal::max(top, stats[(g * ATTEND_HEADS + h) * 2]);
    }
    float4 sum = float4(0.0f);
    float denominator = FINAL ? metal::fast::exp2(sink - top) : 0.0f;
#pragma clang loop unroll(disable)
    for (int g = 0; g < SIMDGROUPS; ++g) {
      float factor = metal::fast::exp2(stats[(g * ATTEND_HEADS + h) * 2] - top);
      denominator += factor * stats[(g * ATTEND_HEADS + h) * 2 + 1];
      sum = sum + memory[(g * ATTEND_HEADS + h) * (ATTEND_DIM / 4) + d] * factor;
    }
    if (FINAL) {
      ((device float4*)out)[h * (ATTEND_DIM / 4) + d] = sum * (1.0f / denominator);
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
