// Products of packed weights with one activation in halves: for GPUs that multiply two halves at a time, where converting
// each weight to a float costs more than reading it.
//
// A lane adds up a chunk's products in halves, half of them in each of a half2, and goes on in floats. MXFP4's weights are
// subnormal halves (mxfp4.h): the device must multiply those exactly.
#pragma once
#include "packed.h"

// 32 bits from bit `s` of the 64 that `low` and `high` make; 0 < s < 32.
METAL_FUNC uint bits_from(uint low, uint high, int s) {
  return (low >> s) | (high << (32 - s));
}

// Integers that stand in the lowest ten bits of a word's halves, where `mask` has ones: or-ed into the mantissa of the half
// 1024, of which `zero` is then exactly taken away, with what they are counted from.
METAL_FUNC half2 integers(uint word, uint mask, half2 zero) {
  return as_type<half2>(and_or(word, mask, 0x64006400u)) - zero;
}

// Values 8 piece .. 8 piece + 7 of a chunk, without their scale and counted from halves_centre; 6-bit ones 0 3, 1 4, 2 5, 6 8
// of each sixteen, then 7 10, 9 12, 11 14, 13 15. Those of 4 and 6 bits that stand p bits high come times 2^p, which the
// packed activation undoes (pack8).
template <int FORMAT>
METAL_FUNC void unpack_pairs(const thread uint* w, int piece, uint lane, thread half2* v) {
  if (FORMAT == FORMAT_MXFP4) {
    mxfp4_pairs(w[piece], lane, v);
  } else if (FORMAT == FORMAT_Q4) {
    half2 low = half2(half(1032.0f));
    half2 high = half2(half(1152.0f));
    v[0] = integers(w[piece], 0x000f000fu, low);
    v[1] = integers(w[piece], 0x00f000f0u, high);
    v[2] = integers(w[piece] >> 8, 0x000f000fu, low);
    v[3] = integers(w[piece] >> 8, 0x00f000f0u, high);
  } else if (FORMAT == FORMAT_Q6) {
    // Two values 12 or 18 bits apart in the stream of words can be had with one shift, or none.
    uint near = 0x003f03f0u;
    uint far = 0x00fc003fu;
    half2 near_zero = half2(float2(1536.0f, 1056.0f));
    half2 far_zero = half2(float2(1056.0f, 1152.0f));
    const thread uint* u = w + 3 * (piece / 2);
    if (piece % 2 == 0) {
      v[0] = integers(u[0], far, far_zero);
      v[1] = integers(u[0] >> 6, far, far_zero);
      v[2] = integers(bits_from(u[0], u[1], 12), far, far_zero);
      v[3] = integers(u[1], near, near_zero);
    } else {
      v[0] = integers(bits_from(u[1], u[2], 10), far, far_zero);
      v[1] = integers(bits_from(u[1], u[2], 22), far, far_zero);
      v[2] = integers(u[2], far << 2, half2(float2(1152.0f, 1536.0f)));
      v[3] = integers(u[2] >> 10, near, near_zero);
    }
  } else {
#pragma clang loop unroll(full)
    for (int i = 0; i < 4; ++i) {
      uint b = w[(2 * piece + i / 2) & 3] >> (8 * (i % 2));
      if (FORMAT == FORMAT_Q8) {
        v[i] = integers(b, 0x00ff00ffu, half2(half(1152.0f)));
      } else {
        v[i] = as_type<half2>(and_or(b << 7, 0x3f803f80u, (b << 8) & 0x80008000u));
      }
    }
  }
}

// sums[r] = this lane's chunk of row r, of which the words at `w` are, times chunk `c` of the packed activation at `halves`,
// half of the products in each half.
template <int FORMAT, int R, int K, typename H>
METAL_FUNC void multiply_halves(const thread uint* w, int c, H halves, uint lane, thread half2* sums) {
  constexpr int CHUNK = halves_chunk(FORMAT, K);
  constexpr int WORDS = CHUNK * format_bits(FORMAT) / 32;
#pragma clang loop unroll(full)
  for (int r = 0; r < R; ++r) {
    sums[r] = half2(half(0.0f));
  }
#pragma clang loop unroll(full)
  for (int piece = 0; piece < CHUNK / 8; ++piece) {
    uint4 x = halves[piece * (K / CHUNK) + c];
#pragma clang loop unroll(full)
    for (int r = 0; r < R; ++r) {
      half2 v[4];
      unpack_pairs<FORMAT>(w + WORDS * r, piece, lane, v);
      sums[r] = metal::fma(v[0], as_type<half2>(x.x), sums[r]);
      sums[r] = metal::fma(v[1], as_type<half2>(x.y), sums[r]);
      sums[r] = metal::fma(v[2], as_type<half2>(x.z), sums[r]);
      sums[r] = metal::fma(v[3], as_type<half2>(x.w), sums[r]);
    }
  }
}

// The scales and biases of step `u` of the block as floats.
template <int FORMAT, int R, typename Q, int COUNT>
METAL_FUNC void step_scales(const thread Block<Q, COUNT>& block, int u, thread float* scale, thread float* bias) {
#pragma clang loop unroll(full)
  for (int r = 0; r < R; ++r) {
    scale[r] = decode_scale<FORMAT>(block.scale[u * R + r]);
    bias[r] = is_affine(FORMAT) ? float(block.bias[u * R + r]) : 0.0f;
  }
}

// acc[r] += sums[r], of chunk `c`, with row r's scale and bias: `behind` points to the floats behind the activation's halves.
template <int FORMAT, int R, int K, typename F>
METAL_FUNC void add_sums(
    const thread half2* sums, const thread float* scale, const thread float* bias, int c, F behind, thread float* acc) {
  float down = behind[uint(c) / (32 / halves_chunk(FORMAT, K))];
  float total = is_affine(FORMAT) ? behind[K / 32 + c] : 0.0f;
#pragma clang loop unroll(full)
  for (int r = 0; r < R; ++r) {
    float sum = (float(sums[r].x) + float(sums[r].y)) * down;
    acc[r] = metal::fma(sum, scale[r], acc[r]);
    if (is_affine(FORMAT)) {
      acc[r] = metal::fma(metal::fma(scale[r], halves_centre(FORMAT), bias[r]), total, acc[r]);
    }
  }
}

// As matvec_rolling (rolling.h): acc[r] += row r times the packed activation.
template <int FORMAT, int K, int R, int UNROLL, typename Row, typename Q, typename H, typename F>
METAL_FUNC void halves_rolling(
    const device uint* weight,
    const device Q* scales,
    const thread Row* next,
    bool more,
    H halves,
    F behind,
    uint lane,
    thread Block<Q, R * UNROLL>& block,
    thread float* acc) {
  constexpr int COUNT = K / chunk_values(FORMAT);
#pragma clang loop unroll(full)
  for (int u = 0; u < UNROLL; ++u) {
    int c = lane_chunk<COUNT>(u, lane);
    half2 sums[R];
    float scale[R];
    float bias[R];
    multiply_halves<FORMAT, R, K>(block.w + 4 * u * R, c, halves, lane, sums);
    step_scales<FORMAT, R>(block, u, scale, bias);
    add_sums<FORMAT, R, K>(sums, scale, bias, c, behind, acc);
    if (more) {
      load_step<FORMAT, 32, K, R>(weight, scales, scales, next, 0, u * 32 + int(lane), COUNT, u, block);
    }
    simdgroup_barrier(mem_flags::mem_none);
  }
}
