// One tile of an expert's product: BM of its rows times BN rows of its MXFP4 weight, over all of K.
//
// Weights are decoded once a tile into threadgroup memory. mxfp4_pair yields values i and i + 4 of a word together, so
// both operands hold each group of 8 in the order 0 4 1 5 2 6 3 7: the product does not notice. The next step's device
// reads are in flight while the current one is multiplied; two buffers make one barrier a step enough.
#pragma once
#include "mxfp4.h"
#include "tiles.h"

// SIMD_M x SIMD_N simdgroups share a BM x BN tile; each holds TM x TN blocks of the result.
template <int BM, int BN, int SIMD_M, int SIMD_N>
struct TileResult {
  simdgroup_matrix<float, 8, 8> block[BM / SIMD_M / 8][BN / SIMD_N / 8];
};

// uint4s of threadgroup memory for the buffers of a tile: two steps of 32 values a row.
constexpr int grouped_memory(int bm, int bn) {
  return (bm + bn) * 8;
}

METAL_FUNC uint4 interleave_halves(uint4 v) {
  uint4 w;
  w.x = (v.x & 0x0000ffffu) | (v.z << 16);
  w.y = (v.x >> 16) | (v.z & 0xffff0000u);
  w.z = (v.y & 0x0000ffffu) | (v.w << 16);
  w.w = (v.y >> 16) | (v.w & 0xffff0000u);
  return w;
}

// Eight weights of one word in that order. The device multiplies 16-bit subnormals exactly: a nibble moved into a
// bfloat is its value times 2^-126, and one packed product with the scale finishes it. Where the scale passes 2 (no
// released weight has one), `boost` makes up the rest.
METAL_FUNC uint decode_pair_subnormal(uint word, int i, bfloat2 scale, bfloat2 boost, bool boosted) {
  uint bits = i == 0 ? ((word & 0x00070007u) << 6) | ((word & 0x00080008u) << 12)
      : i == 1       ? ((word & 0x00700070u) << 2) | ((word & 0x00800080u) << 8)
      : i == 2       ? ((word & 0x07000700u) >> 2) | ((word & 0x08000800u) << 4)
                     : ((word & 0x70007000u) >> 6) | (word & 0x80008000u);
  bfloat2 pair = as_type<bfloat2>(bits) * scale;
  if (boosted) {
    pair = pair * boost;
  }
  return as_type<uint>(pair);
}

template <typename T, bool SUBNORMAL>
METAL_FUNC uint4 decode_word(uint word, uint exponent) {
  uint4 out;
  if (SUBNORMAL) {
    uint low = metal::min(exponent, 128u);
    uint bits = (low + 126u) << 7;
    bfloat2 scale = as_type<bfloat2>(bits | (bits << 16));
    bool boosted = exponent > 128u;
    uint high = boosted ? (exponent - 1u) << 7 : 0x3f80u;
    bfloat2 boost = as_type<bfloat2>(high | (high << 16));
    out.x = decode_pair_subnormal(word, 0, scale, boost, boosted);
    out.y = decode_pair_subnormal(word, 1, scale, boost, boosted);
    out.z = decode_pair_subnormal(word, 2, scale, boost, boosted);
    out.w = decode_pair_subnormal(word, 3, scale, boost, boosted);
  } else {
    float scale = mxfp4_scale(exponent);
    half2 a = mxfp4_pair(word, 0);
    half2 b = mxfp4_pair(word, 1);
    half2 c = mxfp4_pair(word, 2);
    half2 d = mxfp4_pair(word, 3);
    out.x = pack2<T>(float(a.x) * scale, float(a.y) * scale);
    out.y = pack2<T>(float(b.x) * scale, float(b.y) * scale);
    out.z = pack2<T>(float(c.x) * scale, float(c.y) * scale);
    out.w = pack2<T>(float(d.x) * scale, float(d.y) * scale);
  }
  return out;
}

// result = x[rows[...]] * weight^T. `rows[i]` is the source row of tile row 8 (SIMDS i + simdgroup) + lane % 8; only
// the first `valid` tile rows are multiplied (SKIP blocks of 8 at a time), the others read but never used. Weight rows past
// `last_row` repeat it. `memory` holds grouped_memory(BM, BN) uint4s.
template <typename T, int K, int BM, int BN, int SIMD_M, int SIMD_N, int SKIP, bool SUBNORMAL>
METAL_FUNC void grouped_tile(
    const device T* x,
    const thread int* rows,
    const device uint* blocks,
    const device uchar* scales,
    int first_row,
    int last_row,
    int valid,
    threadgroup uint4* memory,
    uint simdgroup,
    uint lane,
    thread TileResult<BM, BN, SIMD_M, SIMD_N>& result) {
  constexpr int SIMDS = SIMD_M * SIMD_N;
  constexpr int THREADS = 32 * SIMDS;
  constexpr int STEPS = K / 32;
  constexpr int TM = BM / SIMD_M / 8;
  constexpr int TN = BN / SIMD_N / 8;
  constexpr int LOADS = BM / 8 / SIMDS;
  // A thread decodes WORDS words of a block of 4, for ROUNDS weight rows.
  constexpr int WORDS = 4 * BN >= 4 * THREADS ? 4 : 4 * BN / THREADS;
  constexpr int PARTS = 4 / WORDS;
  constexpr int ROUNDS = BN * PARTS / THREADS;
  static_assert(K % 32 == 0 && LOADS * 8 * SIMDS == BM && ROUNDS * THREADS == BN * PARTS, "the tile does not divide");
  static_assert(TM % SKIP == 0 && SKIP % 2 == 0, "a simdgroup multiplies 16 rows at a time");
  threadgroup uint4* left = memory;
  threadgroup uint4* right = memory + BM * 8;
  int thread_index = int(simdgroup * 32 + lane);
  int chunk = int(lane) / 8;

  const device uint4* sources[LOADS];
#pragma clang loop unroll(full)
  for (int i = 0; i < LOADS; ++i) {
    sources[i] = (const device uint4*)(x + size_t(rows[i]) * K) + chunk;
  }
  const device uint* weights[ROUNDS];
  const device uchar* exponents[ROUNDS];
#pragma clang loop unroll(full)
  for (int i = 0; i < ROUNDS; ++i) {
    int at = thread_index + i * THREADS;
    int row = metal::min(first_row + at % BN, last_row);
    weights[i] = blocks + size_t(row) * (K / 8) + at / BN * WORDS;
    exponents[i] = scales + size_t(row) * (K / 32);
  }

#pragma clang loop unroll(full)
  for (int i = 0; i < TM; ++i) {
#pragma clang loop unroll(full)
    for (int j = 0; j < TN; ++j) {
      result.block[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    }
  }

  uint4 values[LOADS];
  uint words[ROUNDS * WORDS];
  uint scale[ROUNDS];
  int tile_m = int(simdgroup) / SIMD_N * TM;
  int tile_n = int(simdgroup) % SIMD_N * TN;
  // The first round only reads; each later one stores what the round before has read, reads ahead and multiplies.
  for (int step = -1; step < STEPS; ++step) {
    if (step >= 0) {
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    if (step + 1 < STEPS) {
#pragma clang loop unroll(full)
      for (int i = 0; i < LOADS; ++i) {
        values[i] = sources[i][(step + 1) * 4];
      }
#pragma clang loop unroll(full)
      for (int i = 0; i < ROUNDS; ++i) {
        scale[i] = exponents[i][step + 1];
        if (WORDS == 4) {
          uint4 w = *(const device uint4*)(weights[i] + (step + 1) * 4);
          words[i * WORDS] = w.x;
          words[i * WORDS + 1 % WORDS] = w.y;
          words[i * WORDS + 2 % WORDS] = w.z;
          words[i * WORDS + 3 % WORDS] = w.w;
        } else {
#pragma clang loop unroll(full)
          for (int j = 0; j < WORDS; ++j) {
            words[i * WORDS + j] = weights[i][(step + 1) * 4 + j];
          }
        }
      }
    }
    if (step >= 0) {
      const threadgroup T* a = (const threadgroup T*)(left + (step % 2) * BM * 4);
      const threadgroup T* b = (const threadgroup T*)(right + (step % 2) * BN * 4);
#pragma clang loop unroll(full)
      for (int k = 0; k < 4; k += 2) {
        simdgroup_matrix<T, 8, 8> b0[TN];
        simdgroup_matrix<T, 8, 8> b1[TN];
#pragma clang loop unroll(full)
        for (int j = 0; j < TN; ++j) {
          simdgroup_load(b0[j], b + ((tile_n + j) * 4 + k) * 64, 8, ulong2(0, 0), true);
          simdgroup_load(b1[j], b + ((tile_n + j) * 4 + k + 1) * 64, 8, ulong2(0, 0), true);
        }
#pragma clang loop unroll(full)
        for (int i = 0; i < TM; i += SKIP) {
          if ((tile_m + i) * 8 < valid) {
#pragma clang loop unroll(full)
            for (int m = i; m < i + SKIP; m += 2) {
              simdgroup_matrix<T, 8, 8> a00;
              simdgroup_matrix<T, 8, 8> a01;
              simdgroup_matrix<T, 8, 8> a10;
              simdgroup_matrix<T, 8, 8> a11;
              simdgroup_load(a00, a + ((tile_m + m) * 4 + k) * 64, 8);
              simdgroup_load(a01, a + ((tile_m + m) * 4 + k + 1) * 64, 8);
              simdgroup_load(a10, a + ((tile_m + m + 1) * 4 + k) * 64, 8);
              simdgroup_load(a11, a + ((tile_m + m + 1) * 4 + k + 1) * 64, 8);
#pragma clang loop unroll(full)
              for (int j = 0; j < TN; ++j) {
                multiply_16x8x16<T>(result.block[m][j], result.block[m + 1][j], a00, a01, a10, a11, b0[j], b1[j]);
              }
            }
          }
        }
      }
    }
    if (step + 1 < STEPS) {
      threadgroup uint4* to_left = left + ((step + 1) % 2) * BM * 4;
      threadgroup uint4* to_right = right + ((step + 1) % 2) * BN * 4;
#pragma clang loop unroll(full)
      for (int i = 0; i < LOADS; ++i) {
        to_left[(i * SIMDS + int(simdgroup)) * 32 + int(lane)] = interleave_halves(values[i]);
      }
#pragma clang loop unroll(full)
      for (int i = 0; i < ROUNDS; ++i) {
        int at = thread_index + i * THREADS;
        int row = at % BN;
#pragma clang loop unroll(full)
        for (int j = 0; j < WORDS; ++j) {
          to_right[(row / 8 * 4 + at / BN * WORDS + j) * 8 + row % 8] =
              decode_word<T, SUBNORMAL>(words[i * WORDS + j], scale[i]);
        }
      }
    }
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

// Floats between two rows of a simdgroup's 8-row strip of results on their way out, padded against bank conflicts.
constexpr int strip_stride(int tn) {
  return tn * 8 + 8;
}
