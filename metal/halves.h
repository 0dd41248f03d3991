// Products of packed weights with one activation in halves: for GPUs that multiply two halves at a time, where converting
// each weight to a float costs more than reading it.
//
// A lane adds up a chunk's products in halves, half of them in each of a half2, and goes on in floats. MXFP4's weights are
// subnormal halves (mxfp4.h): the device must multiply those exactly.
#pragma once
#include "packed.h"

// Values 8 piece .. 8 piece + 7 of a chunk, without their scale and counted from halves_centre. An integer is or-ed into the
// mantissa of the half 1024, which is then exactly taken away with the centre.
template <int FORMAT>
METAL_FUNC void unpack_pairs(const thread uint* w, int piece, uint lane, thread half2* v) {
  if (FORMAT == FORMAT_MXFP4) {
    mxfp4_pairs(w[piece], lane, v);
  } else if (FORMAT == FORMAT_Q4) {
#pragma clang loop unroll(full)
    for (int i = 0; i < 4; ++i) {
      v[i] = as_type<half2>(and_or(w[piece] >> (4 * i), 0x000f000fu, 0x64006400u)) - half2(half(1032.0f));
    }
  } else if (FORMAT == FORMAT_Q6) {
    // Values 0 .. 7 fill 48 bits, 8 .. 15 the next 48: sixteen of the one and of the other make a word of pairs.
    uint a = (w[0] & 0x0000ffffu) | (w[1] & 0xffff0000u);
    uint b = (w[0] >> 16) | (w[2] << 16);
    uint c = (w[1] & 0x0000ffffu) | (w[2] & 0xffff0000u);
    uint one = 0x64006400u;
    uint pairs[4];
    if (piece == 0) {
      pairs[0] = and_or(a, 0x003f003fu, one);
      pairs[1] = and_or(a >> 6, 0x003f003fu, one);
      pairs[2] = and_or(a >> 12, 0x000f000fu, and_or(b << 4, 0x00300030u, one));
      pairs[3] = and_or(b >> 2, 0x003f003fu, one);
    } else {
      pairs[0] = and_or(b >> 8, 0x003f003fu, one);
      pairs[1] = and_or(b >> 14, 0x00030003u, and_or(c << 2, 0x003c003cu, one));
      pairs[2] = and_or(c >> 4, 0x003f003fu, one);
      pairs[3] = and_or(c >> 10, 0x003f003fu, one);
    }
#pragma clang loop unroll(full)
    for (int i = 0; i < 4; ++i) {
      v[i] = as_type<half2>(pairs[i]) - half2(half(1056.0f));
    }
  } else {
#pragma clang loop unroll(full)
    for (int i = 0; i < 4; ++i) {
      uint b = w[(2 * piece + i / 2) & 3] >> (8 * (i % 2));
      if (FORMAT == FORMAT_Q8) {
        v[i] = as_type<half2>(and_or(b, 0x00ff00ffu, 0x64006400u)) - half2(half(1152.0f));
      } else {
        v[i] = as_type<half2>(and_or(b << 7, 0x3f803f80u, (b << 8) & 0x80008000u));
      }
    }
  }
}

// acc[r] += this lane's chunk of row r, which `block` holds as step `u`, times chunk `c` of the packed activation: `halves`
// points to its uint4s, `scales` to the floats behind them.
template <int FORMAT, int R, int K, int COUNT, typename Q, typename H, typename F>
METAL_FUNC void multiply_halves(
    const thread Block<Q, COUNT>& block, int u, int c, H halves, F scales, uint lane, thread float* acc) {
  constexpr int CHUNK = chunk_values(FORMAT);
  constexpr int CHUNKS = K / CHUNK;
  half2 sums[R];
#pragma clang loop unroll(full)
  for (int r = 0; r < R; ++r) {
    sums[r] = half2(half(0.0f));
  }
#pragma clang loop unroll(full)
  for (int piece = 0; piece < CHUNK / 8; ++piece) {
    uint4 x = halves[piece * CHUNKS + c];
#pragma clang loop unroll(full)
    for (int r = 0; r < R; ++r) {
      half2 v[4];
      unpack_pairs<FORMAT>(block.w + 4 * (u * R + r), piece, lane, v);
      sums[r] = metal::fma(v[0], as_type<half2>(x.x), sums[r]);
      sums[r] = metal::fma(v[1], as_type<half2>(x.y), sums[r]);
      sums[r] = metal::fma(v[2], as_type<half2>(x.z), sums[r]);
      sums[r] = metal::fma(v[3], as_type<half2>(x.w), sums[r]);
    }
  }
  float down = scales[uint(c) / (32 / CHUNK)];
  float total = is_affine(FORMAT) ? scales[K / 32 + c] : 0.0f;
#pragma clang loop unroll(full)
  for (int r = 0; r < R; ++r) {
    float sum = (float(sums[r].x) + float(sums[r].y)) * down;
    float scale = decode_scale<FORMAT>(block.scale[u * R + r]);
    acc[r] = metal::fma(sum, scale, acc[r]);
    if (is_affine(FORMAT)) {
      acc[r] = metal::fma(metal::fma(scale, halves_centre(FORMAT), float(block.bias[u * R + r])), total, acc[r]);
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
    multiply_halves<FORMAT, R, K>(block, u, lane_chunk<COUNT>(u, lane), halves, behind, lane, acc);
    if (more) {
      load_step<FORMAT, 32, K, R>(weight, scales, scales, next, 0, u * 32 + int(lane), COUNT, u, block);
    }
    simdgroup_barrier(mem_flags::mem_none);
  }
}
