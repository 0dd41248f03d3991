// What a lane takes of the rows of a weight matrix, in every format a model folder holds: 16 bytes of a row at a time (12 in
// the 6-bit format), 32 lanes 512 neighbouring bytes, several rows and steps in flight at once.
#pragma once
#include "common.h"
#include "mxfp4.h"

enum WeightFormat {
  FORMAT_Q4 = 4,
  FORMAT_Q6 = 6,
  FORMAT_Q8 = 8,
  FORMAT_BF16 = 16,
  FORMAT_F32 = 32,
  FORMAT_MXFP4 = 104,
  FORMAT_MXFP8 = 108
};

constexpr int format_bits(int format) {
  return format > 100 ? format - 100 : format;
}

// Values a lane takes at a time.
constexpr int chunk_values(int format) {
  return format == FORMAT_Q6 ? 16 : 128 / format_bits(format);
}

constexpr int row_words(int format, int columns) {
  return columns * format_bits(format) / 32;
}

constexpr bool is_affine(int format) {
  return format <= FORMAT_Q8;
}

constexpr bool is_scaled(int format) {
  return format <= FORMAT_Q8 || format > 100;
}

template <int FORMAT>
METAL_FUNC void load_chunk(const device uint* row, int chunk, thread uint* w) {
  if (FORMAT == FORMAT_Q6) {
    w[0] = row[3 * chunk];
    w[1] = row[3 * chunk + 1];
    w[2] = row[3 * chunk + 2];
    w[3] = 0;
  } else {
    uint4 q = read_once((const device uint4*)row, chunk);
    w[0] = q.x;
    w[1] = q.y;
    w[2] = q.z;
    w[3] = q.w;
  }
}

// E8M0 exponents. E4M3 bytes decode times 2^-8 below.
template <int FORMAT>
METAL_FUNC float decode_scale(uint8_t exponent) {
  uint e = exponent;
  return FORMAT == FORMAT_MXFP4 ? mxfp4_scale(e) : as_type<float>(metal::min(e + 8u, 255u) << 23);
}

template <int FORMAT, typename T>
METAL_FUNC float decode_scale(T scale) {
  return float(scale);
}

// What a lane holds of R rows and UNROLL steps: the words, and the scales as they lie in memory, so that nothing waits
// for a load before it is needed.
template <typename Q, int COUNT>
struct Block {
  uint w[COUNT * 4];
  Q scale[COUNT];
  Q bias[COUNT];
};

// Starts the loads of this lane's chunk `c` of each row into step `u` of the block; from `count` on nothing is changed.
template <int FORMAT, int GROUP, int K, int R, int COUNT, typename Row, typename Q>
METAL_FUNC void load_step(
    const device uint* weight,
    const device Q* scales,
    const device Q* biases,
    const thread Row* rows,
    int first,
    int c,
    int count,
    int u,
    thread Block<Q, COUNT>& block) {
  constexpr int WORDS = row_words(FORMAT, K);
  if (c < count) {
#pragma clang loop unroll(full)
    for (int r = 0; r < R; ++r) {
      int i = u * R + r;
      load_chunk<FORMAT>(weight + rows[r] * WORDS, first + c, block.w + 4 * i);
      if (is_scaled(FORMAT)) {
        Row g = rows[r] * (K / GROUP) + uint(first + c) / (GROUP / chunk_values(FORMAT));
        block.scale[i] = scales[g];
        if (is_affine(FORMAT)) {
          block.bias[i] = biases[g];
        }
      }
    }
  }
}

// This lane's chunk in a step of COUNT chunks; where the last step has none for it, the last chunk of all.
template <int COUNT>
METAL_FUNC int lane_chunk(int step, uint lane) {
  int c = step * 32 + int(lane);
  return step * 32 + 32 <= COUNT ? c : metal::min(c, COUNT - 1);
}

// Step `u` of the block as zeros.
template <int FORMAT, int R, int COUNT, typename Q>
METAL_FUNC void clear_step(int u, thread Block<Q, COUNT>& block) {
#pragma clang loop unroll(full)
  for (int i = u * R; i < u * R + R; ++i) {
    block.w[4 * i] = 0;
    block.w[4 * i + 1] = 0;
    block.w[4 * i + 2] = 0;
    block.w[4 * i + 3] = 0;
    if (is_scaled(FORMAT)) {
      block.scale[i] = Q(0);
      block.bias[i] = Q(0);
    }
  }
}

// Starts the loads of steps `step` .. `step + UNROLL - 1`; chunks from `count` on become zero.
template <int FORMAT, int GROUP, int K, int R, int UNROLL, typename Row, typename Q>
METAL_FUNC void load_block(
    const device uint* weight,
    const device Q* scales,
    const device Q* biases,
    const thread Row* rows,
    int first,
    int step,
    int count,
    uint lane,
    thread Block<Q, R * UNROLL>& block) {
#pragma clang loop unroll(full)
  for (int u = 0; u < UNROLL; ++u) {
    clear_step<FORMAT, R>(u, block);
    load_step<FORMAT, GROUP, K, R>(weight, scales, biases, rows, first, (step + u) * 32 + int(lane), count, u, block);
  }
}
