// A dense projection of one activation (project.h) in halves (halves.h), which is packed on its way into threadgroup memory:
// by all simdgroups, or by STAGERS more of them, while the others have asked for their weights (apart.h).
#pragma once
#include "halves.h"

// uint4s of threadgroup memory: the halves, a float for each 32, and for affine formats one for each chunk.
constexpr int packed_tile_size(int format, int columns) {
  return columns / 8 + (columns / 32 + (is_affine(format) ? columns / chunk_values(format) : 0) + 3) / 4;
}

// Packs values 8 unit .. 8 unit + 7, of which `low` are the first four. All lanes of a simdgroup come together with
// neighbouring units; those that do not write are beyond the end.
template <int FORMAT, int K>
METAL_FUNC void pack8(float4 low, float4 high, int unit, bool writes, threadgroup uint4* staged) {
  constexpr int PIECES = chunk_values(FORMAT) / 8;  // lanes that have a chunk
  threadgroup float* scales = (threadgroup float*)(staged + K / 8);
  float largest = metal::max(largest_of(low), largest_of(high));
  largest = metal::max(largest, simd_shuffle_xor(largest, ushort(1)));
  largest = metal::max(largest, simd_shuffle_xor(largest, ushort(2)));
  uint exponent = halves_exponent(largest);
  float total = ((low.x + low.y) + (low.z + low.w)) + ((high.x + high.y) + (high.z + high.w));
#pragma clang loop unroll(full)
  for (int far = 1; far < PIECES && is_affine(FORMAT); far *= 2) {
    total += simd_shuffle_xor(total, ushort(far));
  }
  low = low * halves_up(FORMAT, exponent);
  high = high * halves_up(FORMAT, exponent);
  if (FORMAT == FORMAT_Q6) {
    // Two lanes have a chunk: the even one gets values 8 .. 11 beside its 0 .. 3, the odd one 4 .. 7 beside its 12 .. 15.
    bool odd = unit % 2 == 1;
    float4 give = odd ? low : high;
    float4 got = float4(
        simd_shuffle_xor(give.x, ushort(1)), simd_shuffle_xor(give.y, ushort(1)), simd_shuffle_xor(give.z, ushort(1)),
        simd_shuffle_xor(give.w, ushort(1)));
    low = odd ? got : low;
    high = odd ? high : got;
  }
  if (writes) {
    uint4 v;
    if (halves_of_nibbles(FORMAT) || FORMAT == FORMAT_Q6) {
      v = uint4(two_halves(low.x, high.x), two_halves(low.y, high.y), two_halves(low.z, high.z), two_halves(low.w, high.w));
    } else {
      v = uint4(two_halves(low.x, low.z), two_halves(low.y, low.w), two_halves(high.x, high.z), two_halves(high.y, high.w));
    }
    staged[unit % PIECES * (K / chunk_values(FORMAT)) + unit / PIECES] = v;
    if (unit % 4 == 0) {
      scales[unit / 4] = halves_down(FORMAT, exponent);
    }
    if (is_affine(FORMAT) && unit % PIECES == 0) {
      scales[K / 32 + unit / PIECES] = total;
    }
  }
}

// acc[r] = row r times the (normed) activation, in every lane of the first SIMDGROUPS simdgroups; undefined in the others.
// All threads of the threadgroup call it together. `sums` holds a number for each simdgroup that packs.
template <int FORMAT, int GROUP, int K, int R, int SIMDGROUPS, int STAGERS, int UNROLL, bool NORM, typename Row, typename Q,
          typename N, typename X>
METAL_FUNC void project_halves(
    X x,
    const device N* norm,
    float eps,
    const device uint* weight,
    const device Q* scales,
    const device Q* biases,
    const thread Row* rows,
    threadgroup uint4* staged,
    threadgroup float* sums,
    uint simdgroup,
    uint lane,
    thread float* acc) {
  constexpr int CHUNKS = K / chunk_values(FORMAT);
  constexpr int STEPS = (CHUNKS + 31) / 32;
  constexpr int FIRST = STAGERS > 0 ? SIMDGROUPS : 0;
  constexpr int PACKING = STAGERS > 0 ? STAGERS : SIMDGROUPS;
  constexpr int EACH = (K / 8 + 32 * PACKING - 1) / (32 * PACKING);
  int packer = int(simdgroup) - FIRST;
  float4 values[2 * EACH];
  float4 norms[2 * EACH];
  if (packer >= 0) {
#pragma clang loop unroll(full)
    for (int i = 0; i < EACH; ++i) {
      int unit = metal::min((i * PACKING + packer) * 32 + int(lane), K / 8 - 1);
#pragma clang loop unroll(full)
      for (int j = 0; j < 2; ++j) {
        values[2 * i + j] = read4(x, 2 * unit + j);
        norms[2 * i + j] = NORM ? read4(norm, 2 * unit + j) : float4(1.0f);
      }
    }
  }
  Block<Q, R * UNROLL> block;
  if (STAGERS == 0 || packer < 0) {
    simdgroup_barrier(mem_flags::mem_none);
    load_block<FORMAT, GROUP, K, R, UNROLL>(weight, scales, biases, rows, 0, 0, CHUNKS, lane, block);
    simdgroup_barrier(mem_flags::mem_none);
  }
  if (packer >= 0) {
    float squares = 0.0f;
#pragma clang loop unroll(full)
    for (int i = 0; i < EACH; ++i) {
      int unit = (i * PACKING + packer) * 32 + int(lane);
      float4 low = values[2 * i];
      float4 high = values[2 * i + 1];
      float square = ((low.x * low.x + low.y * low.y) + (low.z * low.z + low.w * low.w)) +
                     ((high.x * high.x + high.y * high.y) + (high.z * high.z + high.w * high.w));
      squares += unit < K / 8 ? square : 0.0f;
      pack8<FORMAT, K>(low * norms[2 * i], high * norms[2 * i + 1], unit, unit < K / 8, staged);
    }
    if (NORM) {
      squares = simd_sum(squares);
      if (lane == 0) {
        sums[packer] = squares;
      }
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (int(simdgroup) >= SIMDGROUPS) {
    return;
  }
  float factor = 1.0f;
  if (NORM) {
    float sum = 0.0f;
#pragma clang loop unroll(full)
    for (int i = 0; i < PACKING; ++i) {
      sum += sums[i];
    }
    factor = metal::rsqrt(sum * (1.0f / float(K)) + eps);
  }
#pragma clang loop unroll(full)
  for (int r = 0; r < R; ++r) {
    acc[r] = 0.0f;
  }
  const threadgroup uint4* halves = staged;
  const threadgroup float* behind = (const threadgroup float*)(staged + K / 8);
  // Each step leaves its place to the one UNROLL further (as in matvec_stream).
#pragma clang loop unroll(full)
  for (int step = 0; step < STEPS; ++step) {
    int u = step % UNROLL;
    multiply_halves<FORMAT, R, K>(block, u, lane_chunk<CHUNKS>(step, lane), halves, behind, lane, acc);
    int next = step + UNROLL;
    if (next < STEPS) {
      if (next * 32 + 32 > CHUNKS) {
        clear_step<FORMAT, R>(u, block);
      }
      load_step<FORMAT, GROUP, K, R>(weight, scales, biases, rows, 0, next * 32 + int(lane), CHUNKS, u, block);
      simdgroup_barrier(mem_flags::mem_none);
    }
  }
#pragma clang loop unroll(full)
  for (int r = 0; r < R; ++r) {
    acc[r] = simd_sum(acc[r]) * factor;
  }
}
