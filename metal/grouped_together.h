// One tile of an expert's product where four simdgroups multiply together; else grouped_matmul.h.
//
// For GPUs whose matrix units take both operands from threadgroup memory and run beside all else. A step is a pair of
// blocks, 64 values of K. While one is multiplied, the weights of the next are decoded, and the rows and packed weights
// of later ones are on their way, copied from device to threadgroup memory with no register between. Packed weights come
// back to the thread that asked for them, so no barrier stands between.
#pragma once
#include "mxfp4_words.h"
#include "tile_result.h"
#include "together.h"

// uint4s of threadgroup memory: `buffers` steps of both operands, three of packed weights, and the scales of all of K.
constexpr int together_memory(int bm, int bn, int k, int buffers) {
  return (bm + bn) * 8 * buffers + bn * 2 * 3 + bn * (k / 32) / 16;
}

// Row of the tile that a lane brings as its i-th of BM / 4 / SIMDS.
template <int SIMDS>
METAL_FUNC int together_row(int i, int simdgroup, uint lane) {
  return (i * SIMDS + simdgroup) * 4 + int(lane) / 8;
}

// Asks for the rows of step `pair`, eight lanes a row: `sources` are where each begins, in uint4s.
template <int LOADS, int SIMDS>
METAL_FUNC void copy_rows(
    const device uint4* x, const thread uint* sources, int pair, threadgroup uint4* left, uint simdgroup, uint lane) {
#pragma clang loop unroll(full)
  for (int i = 0; i < LOADS; ++i) {
    int row = together_row<SIMDS>(i, int(simdgroup), lane);
    device_copy_async(left + operand_place(row, int(lane) % 8), x + sources[i] + uint(pair * 8) + lane % 8);
  }
}

// Asks for this thread's block of step `pair`, for every row it looks after: two lanes a row.
template <int ROUNDS, int THREADS>
METAL_FUNC void copy_blocks(
    const device uint4* blocks, const thread uint* rows, int pair, threadgroup uint4* packed) {
#pragma clang loop unroll(full)
  for (int i = 0; i < ROUNDS; ++i) {
    device_copy_async(packed + i * THREADS, blocks + rows[i] + uint(2 * pair));
  }
}

// Decodes what copy_blocks brought. Rows past row `last` of the tile, whose blocks are repeated, take its scales.
template <typename T, int K, int ROUNDS, int SIMDS, bool SUBNORMAL>
METAL_FUNC void place_blocks(
    const threadgroup uint4* packed,
    const threadgroup uchar* scales,
    int pair,
    int last,
    threadgroup uint4* right,
    uint simdgroup,
    uint lane) {
#pragma clang loop unroll(full)
  for (int i = 0; i < ROUNDS; ++i) {
    uint4 block = packed[i * SIMDS * 32];
    int row = (i * SIMDS + int(simdgroup)) * 16 + int(lane) / 2;
    uint exponent = scales[metal::min(row, last) * (K / 32) + 2 * pair + int(lane) % 2];
    uint words[4];
    words[0] = block.x;
    words[1] = block.y;
    words[2] = block.z;
    words[3] = block.w;
    uint4 values[4];
    decode_words<T, 4, SUBNORMAL>(words, exponent, values);
#pragma clang loop unroll(full)
    for (int j = 0; j < 4; ++j) {
      right[operand_place(row, int(lane) % 2 * 4 + j)] = values[j];
    }
  }
}

// Starts result += left * right^T, of 64 values of K.
template <typename T, int BM, int BN, int SIMD_M, int SIMD_N>
METAL_FUNC void multiply_step(
    const threadgroup uint4* left,
    const threadgroup uint4* right,
    uint simdgroup,
    thread TileResult<BM, BN, SIMD_M, SIMD_N>& result) {
  simdgroups_multiply_begin();
#pragma clang loop unroll(full)
  for (int m = 0; m < BM / SIMD_M / 8; m += 2) {
    int row = m * SIMD_M * 8 + int(simdgroup) % SIMD_M / 4 * 64;
#pragma clang loop unroll(full)
    for (int chunk = 0; chunk < 8; chunk += 2) {
      simdgroups_multiply_accumulate_64x128x16<T>(
          result.block[m], result.block[m + 1], left + row * 8, right + int(simdgroup) / SIMD_M * 1024, chunk, simdgroup);
    }
  }
  simdgroups_multiply_commit();
}

// result = x[rows[...]] * weight^T. `rows[i]` is the source row of tile row together_row(i). Weight rows past `last_row`
// repeat it. `memory` holds together_memory(BM, BN, K, BUFFERS) uint4s: with four buffers a product may still run when
// the next one starts.
template <typename T, int K, int BM, int BN, int SIMD_M, int SIMD_N, int BUFFERS, bool SUBNORMAL>
METAL_FUNC void together_tile(
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
  constexpr int THREADS = SIMDS * 32;
  constexpr int LOADS = BM / 4 / SIMDS;
  constexpr int ROUNDS = BN / 16 / SIMDS;
  constexpr int STEPS = K / 64;
  constexpr int SIZE = (BM + BN) * 8;
  static_assert(K % 64 == 0, "a step is a pair of blocks");
  static_assert(LOADS * 4 * SIMDS == BM && ROUNDS * 16 * SIMDS == BN, "the tile does not divide");
  static_assert(SIMD_M % 4 == 0 && BM % (16 * SIMD_M) == 0 && BN == 128 * SIMD_N, "four simdgroups take 64 x 128");
  static_assert(BUFFERS == 3 || BUFFERS == 4, "rows are asked for two steps ahead");
  int thread_index = int(simdgroup) * 32 + int(lane);
  int last = last_row - first_row;
  threadgroup uint4* packed = memory + SIZE * BUFFERS + thread_index;
  threadgroup uint4* scale_words = memory + SIZE * BUFFERS + BN * 6;
  const threadgroup uchar* exponents = (const threadgroup uchar*)scale_words;
  const device uint4* rows_of_x = (const device uint4*)x;
  const device uint4* all_blocks = (const device uint4*)blocks;

  uint sources[LOADS];
#pragma clang loop unroll(full)
  for (int i = 0; i < LOADS; ++i) {
    sources[i] = uint(rows[i]) * (K / 8);
  }
  uint weight_rows[ROUNDS];
#pragma clang loop unroll(full)
  for (int i = 0; i < ROUNDS; ++i) {
    int row = metal::min(first_row + (i * SIMDS + int(simdgroup)) * 16 + int(lane) / 2, last_row);
    weight_rows[i] = uint(row) * (K / 32) + lane % 2;
  }
  const device uint4* all_scales = (const device uint4*)(scales + size_t(first_row) * (K / 32));
  int scale_count = (metal::min(BN, last + 1) * (K / 32) + 15) / 16;
  for (int i = thread_index; i < scale_count; i += THREADS) {
    device_copy_async(scale_words + i, all_scales + i);
  }
#pragma clang loop unroll(full)
  for (int i = 0; i < BM / SIMD_M / 8; ++i) {
#pragma clang loop unroll(full)
    for (int j = 0; j < 16; ++j) {
      result.block[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    }
  }

  copy_rows<LOADS, SIMDS>(rows_of_x, sources, 0, memory, simdgroup, lane);
#pragma clang loop unroll(full)
  for (int i = 0; i < 3; ++i) {
    if (i < STEPS) {
      copy_blocks<ROUNDS, THREADS>(all_blocks, weight_rows, i, packed + i * (BN * 2));
    }
    if (i == 1) {
      device_copy_commit();
    }
  }
  if (STEPS > 1) {
    copy_rows<LOADS, SIMDS>(rows_of_x, sources, 1, memory + SIZE, simdgroup, lane);
  }
  device_copy_commit();
  device_copy_wait<1>();
  threadgroup_barrier(mem_flags::mem_threadgroup);
  place_blocks<T, K, ROUNDS, SIMDS, SUBNORMAL>(packed, exponents, 0, last, memory + BM * 8, simdgroup, lane);
  simdgroups_multiply_publish();
  int now = 0;   // the buffer of this step,
  int next = 1;  // of the next,
  int far = 2;   // and of the one after that
  int slot = 0;  // of this step's packed weights, whose place those of three steps further take
  for (int step = 0; step < STEPS; ++step) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    multiply_step<T, BM, BN, SIMD_M, SIMD_N>(memory + now * SIZE, memory + now * SIZE + BM * 8, simdgroup, result);
    if (step + 2 < STEPS) {
      copy_rows<LOADS, SIMDS>(rows_of_x, sources, step + 2, memory + far * SIZE, simdgroup, lane);
    }
    if (step + 3 < STEPS) {
      copy_blocks<ROUNDS, THREADS>(all_blocks, weight_rows, step + 3, packed + slot * (BN * 2));
    }
    device_copy_commit();
    slot = slot == 2 ? 0 : slot + 1;
    if (step + 1 < STEPS) {
      place_blocks<T, K, ROUNDS, SIMDS, SUBNORMAL>(
          packed + slot * (BN * 2), exponents, step + 1, last, memory + next * SIZE + BM * 8, simdgroup, lane);
    }
    device_copy_wait<1>();
    simdgroups_multiply_publish();
    simdgroups_multiply_wait<BUFFERS - 3>();
    now = next;
    next = far;
    far = far == BUFFERS - 1 ? 0 : far + 1;
  }
  simdgroups_multiply_wait<0>();
  threadgroup_barrier(mem_flags::mem_threadgroup);
}
