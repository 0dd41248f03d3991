// Rows of a weight matrix times one to eight activations, by one simdgroup. Each weight is read and decoded once for all
// activations. Sums are in float.
#pragma once
#include "chunks.h"

// Values 8 piece .. 8 piece + 7 of a chunk (4 in F32), without their scale.
template <int FORMAT>
METAL_FUNC void unpack(const thread uint* w, int piece, uint lane, thread float* v) {
  if (FORMAT == FORMAT_F32) {
    for (int i = 0; i < 4; ++i) {
      v[i] = as_type<float>(w[i]);
    }
  } else if (FORMAT == FORMAT_BF16) {
    for (int i = 0; i < 4; ++i) {
      v[2 * i] = low_bf16(w[i]);
      v[2 * i + 1] = high_bf16(w[i]);
    }
  } else if (FORMAT == FORMAT_MXFP4) {
    half2 h[4];
    mxfp4_pairs(w[piece], lane, h);
    for (int i = 0; i < 4; ++i) {
      v[i] = float(h[i].x);
      v[i + 4] = float(h[i].y);
    }
  } else if (FORMAT == FORMAT_Q4) {
    // A small integer or-ed into the mantissa of the half 1024, which is then exactly taken away.
    for (int i = 0; i < 4; ++i) {
      half2 h = as_type<half2>(((w[piece] >> (4 * i)) & 0x000f000fu) | 0x64006400u) - half2(half(1024.0f));
      v[i] = float(h.x);
      v[i + 4] = float(h.y);
    }
  } else if (FORMAT == FORMAT_Q6) {
    for (int i = 0; i < 8; ++i) {
      int bit = 48 * piece + 6 * i;
      uint value = w[bit / 32] >> (bit % 32);
      if (bit % 32 > 26) {
        value |= w[bit / 32 + 1] << (32 - bit % 32);
      }
      v[i] = float(value & 63u);
    }
  } else {
    for (int i = 0; i < 4; ++i) {
      uint b = w[(2 * piece + i / 2) & 3] >> (8 * (i % 2));
      if (FORMAT == FORMAT_Q8) {
        half2 h = as_type<half2>((b & 0x00ff00ffu) | 0x64006400u) - half2(half(1024.0f));
        v[4 * (i / 2) + i % 2] = float(h.x);
        v[4 * (i / 2) + i % 2 + 2] = float(h.y);
      } else {
        half2 h = as_type<half2>(((b & 0x007f007fu) << 7) | ((b & 0x00800080u) << 8));
        v[4 * (i / 2) + i % 2] = float(h.x);
        v[4 * (i / 2) + i % 2 + 2] = float(h.y);
      }
    }
  }
}

// acc[s * R + r] += this lane's chunk `c` of row r, which `block` holds as step `u`, times activation s.
template <int FORMAT, int R, int S, int L, int COUNT, typename Q, typename X>
METAL_FUNC void multiply_step(
    const thread Block<Q, COUNT>& block,
    int u,
    int c,
    X x,
    const thread int* offsets,
    int stride,
    uint lane,
    thread float* acc) {
  constexpr int CHUNK = chunk_values(FORMAT);
  constexpr int PIECE = CHUNK < 8 ? CHUNK : 8;
  constexpr int SHARED = 4 * L / CHUNK;  // chunks of the weight in one of the activation's
  int at = c / SHARED + c % SHARED * (CHUNK / 4) * stride;
  float part[S * R];
  float total[S];
#pragma clang loop unroll(full)
  for (int i = 0; i < S * R; ++i) {
    part[i] = 0.0f;
  }
#pragma clang loop unroll(full)
  for (int s = 0; s < S; ++s) {
    total[s] = 0.0f;
  }
#pragma clang loop unroll(full)
  for (int piece = 0; piece < CHUNK / PIECE; ++piece) {
    float v[R * 8];
#pragma clang loop unroll(full)
    for (int r = 0; r < R; ++r) {
      unpack<FORMAT>(block.w + 4 * (u * R + r), piece, lane, v + 8 * r);
    }
#pragma clang loop unroll(full)
    for (int s = 0; s < S; ++s) {
#pragma clang loop unroll(full)
      for (int j = 0; j < PIECE / 4; ++j) {
        float4 y = read4(x, offsets[s] + at + (piece * (PIECE / 4) + j) * stride);
        if (is_affine(FORMAT)) {
          total[s] += (y.x + y.y) + (y.z + y.w);
        }
#pragma clang loop unroll(full)
        for (int r = 0; r < R; ++r) {
          float sum = part[s * R + r];
          sum = metal::fma(v[8 * r + 4 * j], y.x, sum);
          sum = metal::fma(v[8 * r + 4 * j + 1], y.y, sum);
          sum = metal::fma(v[8 * r + 4 * j + 2], y.z, sum);
          part[s * R + r] = metal::fma(v[8 * r + 4 * j + 3], y.w, sum);
        }
      }
    }
  }
#pragma clang loop unroll(full)
  for (int r = 0; r < R; ++r) {
    int i = u * R + r;
    float scale = is_scaled(FORMAT) ? decode_scale<FORMAT>(block.scale[i]) : 1.0f;
    float bias = is_affine(FORMAT) ? float(block.bias[i]) : 0.0f;
#pragma clang loop unroll(full)
    for (int s = 0; s < S; ++s) {
      float sum = part[s * R + r];
      if (is_affine(FORMAT)) {
        sum = metal::fma(scale, sum, bias * total[s]);
      } else if (is_scaled(FORMAT)) {
        sum *= scale;
      }
      acc[s * R + r] += sum;
    }
  }
}

// One turn of matvec: the next block is asked for, `block` is used and becomes the next.
template <int FORMAT, int GROUP, int K, int R, int S, int UNROLL, int L, typename Row, typename Q, typename X>
METAL_FUNC void matvec_turn(
    const device uint* weight,
    const device Q* scales,
    const device Q* biases,
    const thread Row* rows,
    X x,
    const thread int* offsets,
    int stride,
    int first,
    int step,
    int count,
    uint lane,
    thread Block<Q, R * UNROLL>& block,
    thread float* acc) {
  Block<Q, R * UNROLL> next;
  if ((step + UNROLL) * 32 < count) {
    load_block<FORMAT, GROUP, K, R, UNROLL>(weight, scales, biases, rows, first, step + UNROLL, count, lane, next);
  }
  // Or a compiler moves the loads down to where they are used, and each is waited for in its turn.
  simdgroup_barrier(mem_flags::mem_none);
#pragma clang loop unroll(full)
  for (int u = 0; u < UNROLL; ++u) {
    int c = metal::min((step + u) * 32 + int(lane), count - 1);
    multiply_step<FORMAT, R, S, L>(block, u, c, x, offsets, stride, lane, acc);
  }
  if ((step + UNROLL) * 32 < count) {
    block = next;
  }
}

// acc[s * R + r] += sum over this lane's chunks of row r times activation s.
//
// The chunks are first .. first + count - 1 of each row; `x` holds them permuted (see common.h) from `offsets[s]` on, in
// float4s and by groups of L, with chunk `first` at its start. `block` holds the first block already; each next one is
// loaded before the present one is used.
template <int FORMAT, int GROUP, int K, int R, int S, int UNROLL, int L, typename Row, typename Q, typename X>
METAL_FUNC void matvec(
    const device uint* weight,
    const device Q* scales,
    const device Q* biases,
    const thread Row* rows,
    X x,
    const thread int* offsets,
    int stride,
    int first,
    int count,
    uint lane,
    thread Block<Q, R * UNROLL>& block,
    thread float* acc) {
  // A few turns are written out: a compiler then tells the loads of one turn from those of the next, and waits for each
  // apart.
  constexpr int TURNS = (K / chunk_values(FORMAT) + 32 * UNROLL - 1) / (32 * UNROLL);
  if (S == 1 && TURNS <= 3) {
#pragma clang loop unroll(full)
    for (int turn = 0; turn < TURNS; ++turn) {
      if (turn * UNROLL * 32 < count) {
        matvec_turn<FORMAT, GROUP, K, R, S, UNROLL, L>(
            weight, scales, biases, rows, x, offsets, stride, first, turn * UNROLL, count, lane, block, acc);
      }
    }
  } else {
#pragma clang loop unroll(disable)
    for (int step = 0; step * 32 < count; step += UNROLL) {
      matvec_turn<FORMAT, GROUP, K, R, S, UNROLL, L>(
          weight, scales, biases, rows, x, offsets, stride, first, step, count, lane, block, acc);
    }
  }
}
