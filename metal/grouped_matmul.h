// One tile of an expert's product: BM of its rows times BN rows of its MXFP4 weight, over all of K.
//
// Weights are decoded once a tile into threadgroup memory. The next step's device reads are in flight while the current
// one is multiplied, and nothing touches what they bring until then; two buffers make one barrier a step enough.
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

// A word's lower (upper) four nibbles so that neighbours lie 16 bits apart, as mxfp4_pair wants them: 0 and 1 for pair
// 0, 2 and 3 for pair 2. Other bits are left over from their neighbours.
METAL_FUNC uint spread_low(uint word) {
  return (word & 0x0000ffffu) | (word << 12);
}

METAL_FUNC uint spread_high(uint word) {
  return (word >> 16) | ((word >> 4) & 0xffff0000u);
}

// Eight weights of one word. The device multiplies 16-bit subnormals exactly: a nibble moved into a bfloat is its value
// times 2^-126, and one packed product with the scale finishes it.
METAL_FUNC uint4 decode_word_subnormal(uint word, bfloat2 scale) {
  uint low = spread_low(word);
  uint high = spread_high(word);
  uint4 out;
  out.x = as_type<uint>(as_type<bfloat2>(((low << 6) & 0x01c001c0u) | ((low << 12) & 0x80008000u)) * scale);
  out.y = as_type<uint>(as_type<bfloat2>(((low >> 2) & 0x01c001c0u) | ((low << 4) & 0x80008000u)) * scale);
  out.z = as_type<uint>(as_type<bfloat2>(((high << 6) & 0x01c001c0u) | ((high << 12) & 0x80008000u)) * scale);
  out.w = as_type<uint>(as_type<bfloat2>(((high >> 2) & 0x01c001c0u) | ((high << 4) & 0x80008000u)) * scale);
  return out;
}

METAL_FUNC bfloat2 twice(uint bits) {
  return as_type<bfloat2>(bits | (bits << 16));
}

METAL_FUNC uint4 scaled(uint4 v, bfloat2 factor) {
  uint4 out;
  out.x = as_type<uint>(as_type<bfloat2>(v.x) * factor);
  out.y = as_type<uint>(as_type<bfloat2>(v.y) * factor);
  out.z = as_type<uint>(as_type<bfloat2>(v.z) * factor);
  out.w = as_type<uint>(as_type<bfloat2>(v.w) * factor);
  return out;
}

template <typename T>
METAL_FUNC uint4 decode_word(uint word, float scale) {
  uint4 out;
  uint low = spread_low(word);
  uint high = spread_high(word);
  half2 a = mxfp4_pair(low, 0);
  half2 b = mxfp4_pair(low, 2);
  half2 c = mxfp4_pair(high, 0);
  half2 d = mxfp4_pair(high, 2);
  out.x = pack2<T>(float(a.x) * scale, float(a.y) * scale);
  out.y = pack2<T>(float(b.x) * scale, float(b.y) * scale);
  out.z = pack2<T>(float(c.x) * scale, float(c.y) * scale);
  out.w = pack2<T>(float(d.x) * scale, float(d.y) * scale);
  return out;
}

// COUNT words of a block with this exponent, to every eighth uint4 from `to` on.
template <typename T, int COUNT, bool SUBNORMAL>
METAL_FUNC void decode_words(const thread uint* words, uint exponent, threadgroup uint4* to) {
  if (SUBNORMAL) {
    bfloat2 factor = twice((metal::min(exponent, 128u) + 126u) << 7);
    // Scales past 2 need more than a bfloat's range in one factor. No released weight has one.
    if (simd_any(exponent > 128u)) {
      bfloat2 rest = twice((metal::max(exponent, 128u) - 1u) << 7);
      for (int j = 0; j < COUNT; ++j) {
        to[j * 8] = scaled(decode_word_subnormal(words[j], factor), rest);
      }
    } else {
#pragma clang loop unroll(full)
      for (int j = 0; j < COUNT; ++j) {
        to[j * 8] = decode_word_subnormal(words[j], factor);
      }
    }
  } else {
    float scale = mxfp4_scale(exponent);
#pragma clang loop unroll(full)
    for (int j = 0; j < COUNT; ++j) {
      to[j * 8] = decode_word<T>(words[j], scale);
    }
  }
}

// One thread's weights on their way from device to threadgroup memory: its block of 32 of each row it looks after. Two
// blocks of a row lie side by side in two lanes, so that a read takes 32 bytes of each row and 16 rows at a time.
template <int ROUNDS>
struct Weights {
  uint4 words[ROUNDS];
  uint exponent[ROUNDS];
};

// Block 2 pair + this lane's half of each row; zeros past the last block, where K is an odd number of blocks.
template <int K, int ROUNDS>
METAL_FUNC void fetch_weights(
    const device uint4* const thread* blocks,
    const device uchar* const thread* exponents,
    int pair,
    int half_of_pair,
    thread Weights<ROUNDS>& ahead) {
  constexpr int LAST = K / 32 - 1;
  int block = metal::min(2 * pair + half_of_pair, LAST);
#pragma clang loop unroll(full)
  for (int i = 0; i < ROUNDS; ++i) {
    ahead.words[i] = blocks[i][block];
    ahead.exponent[i] = exponents[i][block];
    if (K % 64 != 0 && 2 * pair + half_of_pair > LAST) {
      ahead.words[i] = uint4(0);
    }
  }
}

template <int LOADS>
METAL_FUNC void fetch_rows(const device uint4* const thread* sources, int at, thread uint4* ahead) {
#pragma clang loop unroll(full)
  for (int i = 0; i < LOADS; ++i) {
    ahead[i] = sources[i][at];
  }
}

// A step's operands into a buffer: words 2 HALF and 2 HALF + 1 of each block.
template <typename T, int LOADS, int ROUNDS, int SIMDS, int HALF, bool SUBNORMAL>
METAL_FUNC void place(
    const thread uint4* rows,
    const thread Weights<ROUNDS>& weights,
    threadgroup uint4* left,
    threadgroup uint4* right,
    uint simdgroup,
    uint lane) {
#pragma clang loop unroll(full)
  for (int i = 0; i < LOADS; ++i) {
    left[(i * SIMDS + int(simdgroup)) * 32 + int(lane)] = rows[i];
  }
#pragma clang loop unroll(full)
  for (int i = 0; i < ROUNDS; ++i) {
    uint words[2];
    words[0] = HALF == 0 ? weights.words[i].x : weights.words[i].z;
    words[1] = HALF == 0 ? weights.words[i].y : weights.words[i].w;
    int strip = (i * SIMDS + int(simdgroup)) * 2 + int(lane) / 16;
    decode_words<T, 2, SUBNORMAL>(
        words, weights.exponent[i], right + (strip * 4 + int(lane) / 8 % 2 * 2) * 8 + int(lane) % 8);
  }
}

template <typename T, int BM, int BN, int SIMD_M, int SIMD_N, int SKIP>
METAL_FUNC void multiply(
    const threadgroup uint4* left,
    const threadgroup uint4* right,
    int tile_m,
    int tile_n,
    int valid,
    thread TileResult<BM, BN, SIMD_M, SIMD_N>& result) {
  constexpr int TM = BM / SIMD_M / 8;
  constexpr int TN = BN / SIMD_N / 8;
  const threadgroup T* a = (const threadgroup T*)left + tile_m * 256;
  const threadgroup T* b = (const threadgroup T*)right + tile_n * 256;
#pragma clang loop unroll(full)
  for (int i = 0; i < TM; i += SKIP) {
    if ((tile_m + i) * 8 < valid) {
#pragma clang loop unroll(full)
      for (int k = 0; k < 4; k += 2) {
        simdgroup_matrix<T, 8, 8> b0[TN];
        simdgroup_matrix<T, 8, 8> b1[TN];
#pragma clang loop unroll(full)
        for (int j = 0; j < TN; j += 2) {
          load_right<true>(b0[j], b1[j], b0[j + 1], b1[j + 1], b + j * 256 + k * 64, 8, 64, 256);
        }
#pragma clang loop unroll(full)
        for (int m = i; m < i + SKIP; m += 2) {
          simdgroup_matrix<T, 8, 8> a00;
          simdgroup_matrix<T, 8, 8> a01;
          simdgroup_matrix<T, 8, 8> a10;
          simdgroup_matrix<T, 8, 8> a11;
          load_left(a00, a01, a10, a11, a + m * 256 + k * 64, 8, 64, 256);
#pragma clang loop unroll(full)
          for (int j = 0; j < TN; ++j) {
            multiply_16x8x16<T>(result.block[m][j], result.block[m + 1][j], a00, a01, a10, a11, b0[j], b1[j]);
          }
        }
      }
    }
  }
}

// result = x[rows[...]] * weight^T. `rows[i]` is the source row of tile row 8 (SIMDS i + simdgroup) + lane % 8; only
// the first `valid` tile rows are multiplied (SKIP blocks of 8 at a time), the others read but never used. Weight rows
// past `last_row` repeat it. `memory` holds grouped_memory(BM, BN) uint4s.
//
// A step multiplies 32 values of K: half of each of two neighbouring blocks, in the same order on both sides.
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
  constexpr int TM = BM / SIMD_M / 8;
  constexpr int TN = BN / SIMD_N / 8;
  constexpr int LOADS = BM / 8 / SIMDS;
  constexpr int ROUNDS = BN / 16 / SIMDS;
  constexpr int PAIRS = (K + 63) / 64;
  static_assert(K % 32 == 0 && LOADS * 8 * SIMDS == BM && ROUNDS * 16 * SIMDS == BN, "the tile does not divide");
  static_assert(TM % SKIP == 0 && SKIP % 2 == 0 && TN % 2 == 0, "a simdgroup multiplies 16 rows and columns at a time");
  threadgroup uint4* left = memory;
  threadgroup uint4* right = memory + BM * 8;
  // In uint4s: lanes of chunk 0 and 1 (2 and 3) take half of the first (second) block of a pair.
  int chunk = int(lane) / 16 * 4 + int(lane) / 8 % 2;
  int half_of_pair = int(lane) / 8 % 2;

  const device uint4* sources[LOADS];
#pragma clang loop unroll(full)
  for (int i = 0; i < LOADS; ++i) {
    sources[i] = (const device uint4*)(x + size_t(rows[i]) * K);
  }
  const device uint4* row_blocks[ROUNDS];
  const device uchar* exponents[ROUNDS];
#pragma clang loop unroll(full)
  for (int i = 0; i < ROUNDS; ++i) {
    int row = (i * SIMDS + int(simdgroup)) * 16 + int(lane) / 16 * 8 + int(lane) % 8;
    row = metal::min(first_row + row, last_row);
    row_blocks[i] = (const device uint4*)(blocks + size_t(row) * (K / 8));
    exponents[i] = scales + size_t(row) * (K / 32);
  }
#pragma clang loop unroll(full)
  for (int i = 0; i < TM; ++i) {
#pragma clang loop unroll(full)
    for (int j = 0; j < TN; ++j) {
      result.block[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    }
  }

  int tile_m = int(simdgroup) / SIMD_N * TM;
  int tile_n = int(simdgroup) % SIMD_N * TN;
  // Rows past K (in an odd last pair) meet zero weights: any values of the row do.
  constexpr int END = K / 8 - 1;
  uint4 ahead[LOADS];
  Weights<ROUNDS> weights;
  fetch_rows<LOADS>(sources, metal::min(chunk, END), ahead);
  fetch_weights<K, ROUNDS>(row_blocks, exponents, 0, half_of_pair, weights);
  place<T, LOADS, ROUNDS, SIMDS, 0, SUBNORMAL>(ahead, weights, left, right, simdgroup, lane);
  for (int pair = 0; pair < PAIRS; ++pair) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    fetch_rows<LOADS>(sources, metal::min(pair * 8 + 2 + chunk, END), ahead);
    multiply<T, BM, BN, SIMD_M, SIMD_N, SKIP>(left, right, tile_m, tile_n, valid, result);
    place<T, LOADS, ROUNDS, SIMDS, 1, SUBNORMAL>(ahead, weights, left + BM * 4, right + BN * 4, simdgroup, lane);

    threadgroup_barrier(mem_flags::mem_threadgroup);
    // After the last pair this reads and stores once more, for nobody: cheaper than asking every time.
    int next = metal::min(pair + 1, PAIRS - 1);
    fetch_rows<LOADS>(sources, metal::min(next * 8 + chunk, END), ahead);
    fetch_weights<K, ROUNDS>(row_blocks, exponents, next, half_of_pair, weights);
    multiply<T, BM, BN, SIMD_M, SIMD_N, SKIP>(left + BM * 4, right + BN * 4, tile_m, tile_n, valid, result);
    place<T, LOADS, ROUNDS, SIMDS, 0, SUBNORMAL>(ahead, weights, left, right, simdgroup, lane);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

// Floats between two rows of a simdgroup's 8-row strip of results on their way out, padded against bank conflicts.
constexpr int strip_stride(int tn) {
  return tn * 8 + 8;
}
