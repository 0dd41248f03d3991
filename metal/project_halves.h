// A dense projection of one activation (project.h) in halves (halves.h), which is packed on its way into threadgroup memory:
// by all simdgroups, or by STAGERS more of them, while the others have asked for their weights (apart.h).
#pragma once
#include "halves.h"
#include "held_scales.h"
#include "neighbours.h"

// uint4s of threadgroup memory: the halves, a float for each 32, and for affine formats one for each chunk.
constexpr int packed_tile_size(int format, int columns) {
  return columns / 8 + (columns / 32 + (is_affine(format) ? columns / halves_chunk(format, columns) : 0) + 3) / 4;
}

// Packs values 8 unit .. 8 unit + 7, of which `low` are the first four. All lanes of a simdgroup come together with
// neighbouring units; those that do not write are beyond the end.
template <int FORMAT, int K>
METAL_FUNC void pack8(float4 low, float4 high, int unit, bool writes, threadgroup uint4* staged) {
  constexpr int PIECES = halves_chunk(FORMAT, K) / 8;  // lanes that have a chunk
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
  float up = halves_up(FORMAT, exponent);
  uint4 v;
  if (FORMAT == FORMAT_Q6) {
    // Two lanes have sixteen values, and one each for the other's pairs. What meets a weight p bits high comes times 2^-p.
    bool odd = unit % 2 == 1;
    float got = simd_shuffle_xor(odd ? low.x : high.w, ushort(1));
    float quarter = up * 0.25f;
    float sixteenth = up * 0.0625f;
    float third = odd ? quarter : up;
    float third_partner = odd ? sixteenth : quarter;
    v.x = two_halves((odd ? got : low.x) * up, (odd ? low.z : low.w) * quarter);
    v.y = two_halves(low.y * up, high.x * quarter);
    v.z = two_halves((odd ? low.w : low.z) * third, (odd ? high.z : high.y) * third_partner);
    v.w = two_halves((odd ? high.y : high.z) * sixteenth, (odd ? high.w : got) * up);
  } else {
    float4 ups = FORMAT == FORMAT_Q4 ? up * float4(1.0f, 0.0625f, 1.0f, 0.0625f) : float4(up);
    low = low * ups;
    high = high * ups;
    v = halves_of_nibbles(FORMAT)
            ? uint4(two_halves(low.x, high.x), two_halves(low.y, high.y), two_halves(low.z, high.z), two_halves(low.w, high.w))
            : uint4(two_halves(low.x, low.z), two_halves(low.y, low.w), two_halves(high.x, high.z), two_halves(high.y, high.w));
  }
  if (writes) {
    staged[unit % PIECES * (K / (8 * PIECES)) + unit / PIECES] = v;
    if (unit % 4 == 0) {
      scales[unit / 4] = halves_down(FORMAT, exponent);
    }
    if (is_affine(FORMAT) && unit % PIECES == 0) {
      scales[K / 32 + unit / PIECES] = total;
    }
  }
}

// Starts the loads of step `step` of each row, but for the scales of affine weights, into step `u` of the block, or of 6-bit
// weights into `read`; chunks beyond the last are left as they are.
template <int FORMAT, int GROUP, int K, int R, int COUNT, typename W, typename Row, typename Q>
METAL_FUNC void load_halves_step(
    const device uint* weight,
    const device Q* scales,
    const thread Row* rows,
    int step,
    uint lane,
    int u,
    thread Block<Q, COUNT>& block,
    thread W* read) {
  constexpr int CHUNKS = K / chunk_values(FORMAT);
  int c = step * 32 + int(lane);
  if (FORMAT == FORMAT_Q6) {
    load_neighbours<K, R>(weight, rows, step, int(lane), read + 3 * u * R);
  } else if (!is_affine(FORMAT)) {
    load_step<FORMAT, GROUP, K, R>(weight, scales, scales, rows, 0, c, CHUNKS, u, block);
  } else if (step * 32 + 32 <= CHUNKS || c < CHUNKS) {
    // As in load_step, whose scales are held here.
#pragma clang loop unroll(full)
    for (int r = 0; r < R; ++r) {
      load_chunk<FORMAT>(weight + rows[r] * row_words(FORMAT, K), c, block.w + 4 * (u * R + r));
    }
  }
}

// Step `u` as zeros.
template <int FORMAT, int R, int COUNT, typename W, typename Q>
METAL_FUNC void clear_halves_step(int u, thread Block<Q, COUNT>& block, thread W* read) {
  if (FORMAT == FORMAT_Q6) {
    clear_neighbours<R>(read + 3 * u * R);
  } else {
    clear_step<FORMAT, R>(u, block);
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
  constexpr int CHUNK = halves_chunk(FORMAT, K);
  constexpr int CHUNKS = K / CHUNK;
  constexpr int STEPS = (CHUNKS + 31) / 32;
  constexpr bool AFFINE = is_affine(FORMAT);
  constexpr int HELD = AFFINE ? held_groups(K / GROUP) : 1;
  constexpr int STEP_GROUPS = AFFINE ? 32 * CHUNK / GROUP : 1;
  constexpr int WORDS = CHUNK * format_bits(FORMAT) / 32;
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
  typedef typename NeighbourWord<FORMAT == FORMAT_Q6 && CHUNK == 32>::type Word;
  Word read[3 * R * UNROLL];
  Q held_scale[R * HELD];
  Q held_bias[R * HELD];
  if (STAGERS == 0 || packer < 0) {
    simdgroup_barrier(mem_flags::mem_none);
    if (AFFINE) {
      hold_scales<K / GROUP, R>(scales, biases, rows, lane, held_scale, held_bias);
    }
#pragma clang loop unroll(full)
    for (int u = 0; u < UNROLL; ++u) {
      clear_halves_step<FORMAT, R>(u, block, read);
      load_halves_step<FORMAT, GROUP, K, R>(weight, scales, rows, u, lane, u, block, read);
    }
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
  uint two[R * HELD];
#pragma clang loop unroll(full)
  for (int i = 0; i < R * HELD && AFFINE; ++i) {
    two[i] = two_scales(held_scale[i], held_bias[i]);
  }
  // Each step leaves its place to the one UNROLL further (as in matvec_stream).
#pragma clang loop unroll(full)
  for (int step = 0; step < STEPS; ++step) {
    int u = step % UNROLL;
    int c = lane_chunk<CHUNKS>(step, lane);
    float scale[R];
    float bias[R];
    if (AFFINE) {
      held_scales<STEP_GROUPS, R, Q>(two, step, lane, scale, bias);
    } else {
      step_scales<FORMAT, R>(block, u, scale, bias);
    }
    half2 products[R];
    if (FORMAT == FORMAT_Q6) {
      uint own[R * WORDS];
#pragma clang loop unroll(full)
      for (int r = 0; r < R; ++r) {
        own_words(read + 3 * (u * R + r), lane, own + WORDS * r);
      }
      multiply_halves<FORMAT, R, K>(own, c, halves, lane, products);
    } else {
      multiply_halves<FORMAT, R, K>(block.w + 4 * u * R, c, halves, lane, products);
    }
    add_sums<FORMAT, R, K>(products, scale, bias, c, behind, acc);
    int next = step + UNROLL;
    if (next < STEPS) {
      if (next * 32 + 32 > CHUNKS) {
        clear_halves_step<FORMAT, R>(u, block, read);
      }
      load_halves_step<FORMAT, GROUP, K, R>(weight, scales, rows, next, lane, u, block, read);
      simdgroup_barrier(mem_flags::mem_none);
    }
  }
#pragma clang loop unroll(full)
  for (int r = 0; r < R; ++r) {
    acc[r] = simd_sum(acc[r]) * factor;
  }
}
