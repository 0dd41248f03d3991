// One tile of an expert's product: BM of its rows times BN rows of its MXFP4 weight, over all of K.
//
// Weights are decoded once a tile into threadgroup memory. While one step is multiplied the operands of the next one go
// from registers to the other buffer, decoded on the way, and those of the one after it are read: a read has a whole
// step to arrive, and decoding fills the gaps between products. Two buffers make one barrier a step enough.
#pragma once
#include "mxfp4_words.h"
#include "tile_result.h"

// uint4s of threadgroup memory for the buffers of a tile: two steps of 32 values a row.
constexpr int grouped_memory(int bm, int bn) {
  return (bm + bn) * 8;
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

// A step's rows into a buffer.
template <int LOADS, int SIMDS>
METAL_FUNC void place_rows(const thread uint4* rows, threadgroup uint4* left, uint simdgroup, uint lane) {
#pragma clang loop unroll(full)
  for (int i = 0; i < LOADS; ++i) {
    left[(i * SIMDS + int(simdgroup)) * 32 + int(lane)] = rows[i];
  }
}

// A step's weights of one round into a buffer: words 2 HALF and 2 HALF + 1 of each block.
template <typename T, int ROUNDS, int SIMDS, int HALF, bool SUBNORMAL>
METAL_FUNC void place_weights(
    const thread Weights<ROUNDS>& weights, int round, threadgroup uint4* right, uint simdgroup, uint lane) {
  uint words[2];
  words[0] = HALF == 0 ? weights.words[round].x : weights.words[round].z;
  words[1] = HALF == 0 ? weights.words[round].y : weights.words[round].w;
  int strip = (round * SIMDS + int(simdgroup)) * 2 + int(lane) / 16;
  uint4 values[2];
  decode_words<T, 2, SUBNORMAL>(words, weights.exponent[round], values);
  threadgroup uint4* to = right + (strip * 4 + int(lane) / 8 % 2 * 2) * 8 + int(lane) % 8;
  to[0] = values[0];
  to[8] = values[1];
}

// One step: multiplies the buffer at `left` and `right`, fills the other one for the step after it (half HALF of its
// pair) from what was read a step ago, and reads `rows` for the one after that. The other buffer is written behind this
// one's last load, as a compiler will not move loads up across those writes.
template <typename T, int BM, int BN, int SIMD_M, int SIMD_N, int HALF, bool SUBNORMAL>
METAL_FUNC void grouped_step(
    const threadgroup uint4* left,
    const threadgroup uint4* right,
    threadgroup uint4* next_left,
    threadgroup uint4* next_right,
    const device uint4* const thread* sources,
    int at,
    thread uint4* rows,
    const thread Weights<BN / 16 / (SIMD_M * SIMD_N)>& weights,
    uint simdgroup,
    uint lane,
    thread TileResult<BM, BN, SIMD_M, SIMD_N>& result) {
  constexpr int SIMDS = SIMD_M * SIMD_N;
  constexpr int TM = BM / SIMD_M / 8;
  constexpr int TN = BN / SIMD_N / 8;
  constexpr int LOADS = BM / 8 / SIMDS;
  constexpr int ROUNDS = BN / 16 / SIMDS;
  const threadgroup T* a = (const threadgroup T*)left + int(simdgroup) % SIMD_M * 512;
  const threadgroup T* b = (const threadgroup T*)right + int(simdgroup) / SIMD_M * TN * 256;
#pragma clang loop unroll(full)
  for (int k = 0; k < 4; k += 2) {
    simdgroup_matrix<T, 8, 8> b0[TN];
    simdgroup_matrix<T, 8, 8> b1[TN];
#pragma clang loop unroll(full)
    for (int j = 0; j < TN; j += 2) {
      load_right<true>(b0[j], b1[j], b0[j + 1], b1[j + 1], b + j * 256 + k * 64, 8, 64, 256);
    }
#pragma clang loop unroll(full)
    for (int m = 0; m < TM; m += 2) {
      simdgroup_matrix<T, 8, 8> a00;
      simdgroup_matrix<T, 8, 8> a01;
      simdgroup_matrix<T, 8, 8> a10;
      simdgroup_matrix<T, 8, 8> a11;
      load_left(a00, a01, a10, a11, a + m * SIMD_M * 256 + k * 64, 8, 64, 256);
      if (k == 2 && m == TM - 2) {
        place_rows<LOADS, SIMDS>(rows, next_left, simdgroup, lane);
        fetch_rows<LOADS>(sources, at, rows);
#pragma clang loop unroll(full)
        for (int i = 0; i < ROUNDS; ++i) {
          place_weights<T, ROUNDS, SIMDS, HALF, SUBNORMAL>(weights, i, next_right, simdgroup, lane);
        }
      }
#pragma clang loop unroll(full)
      for (int j = 0; j < TN; ++j) {
        multiply_16x8x16<T>(result.block[m][j], result.block[m + 1][j], a00, a01, a10, a11, b0[j], b1[j]);
      }
    }
  }
}

// result = x[rows[...]] * weight^T. `rows[i]` is the source row of tile row 8 (SIMDS i + simdgroup) + lane % 8. Weight
// rows past `last_row` repeat it. `memory` holds grouped_memory(BM, BN) uint4s.
//
// A step multiplies 32 values of K: half of each of two neighbouring blocks, in the same order on both sides.
template <typename T, int K, int BM, int BN, int SIMD_M, int SIMD_N, bool SUBNORMAL>
METAL_FUNC void grouped_tile(
    const device T* x,
    const thread int* rows,
    const device uint* blocks,
    const device uchar* scales,
    int first_row,
    int last_row,
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
  static_assert(TM % 2 == 0 && TN % 2 == 0, "a simdgroup multiplies 16 rows and columns at a time");
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

  // Rows past K (in an odd last pair) meet zero weights: any values of the row do.
  constexpr int END = K / 8 - 1;
  uint4 ahead[LOADS];
  Weights<ROUNDS> weights;
  fetch_weights<K, ROUNDS>(row_blocks, exponents, 0, half_of_pair, weights);
  fetch_rows<LOADS>(sources, metal::min(chunk, END), ahead);
  place_rows<LOADS, SIMDS>(ahead, left, simdgroup, lane);
  fetch_rows<LOADS>(sources, metal::min(2 + chunk, END), ahead);
#pragma clang loop unroll(full)
  for (int i = 0; i < ROUNDS; ++i) {
    place_weights<T, ROUNDS, SIMDS, 0, SUBNORMAL>(weights, i, right, simdgroup, lane);
  }
  for (int pair = 0; pair < PAIRS; ++pair) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    // After the last pair this reads and stores once more, for nobody: cheaper than asking every time.
    int next = metal::min(pair + 1, PAIRS - 1);
    Weights<ROUNDS> coming;
    fetch_weights<K, ROUNDS>(row_blocks, exponents, next, half_of_pair, coming);
    grouped_step<T, BM, BN, SIMD_M, SIMD_N, 1, SUBNORMAL>(
        left, right, left + BM * 4, right + BN * 4, sources, metal::min(next * 8 + chunk, END), ahead, weights,
        simdgroup, lane, result);
    weights = coming;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    grouped_step<T, BM, BN, SIMD_M, SIMD_N, 0, SUBNORMAL>(
        left + BM * 4, right + BN * 4, left, right, sources, metal::min(next * 8 + 2 + chunk, END), ahead, weights,
        simdgroup, lane, result);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
}
