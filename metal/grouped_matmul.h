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

// One thread's share of a step, on its way from device to threadgroup memory.
template <int LOADS, int WORDS, int ROUNDS>
struct Ahead {
  uint4 values[LOADS];
  uint words[WORDS];
  uint scale[ROUNDS];
};

template <int LOADS, int ROUNDS, int WORDS>
METAL_FUNC void fetch(
    const device uint4* const thread* sources,
    const device uint* const thread* weights,
    const device uchar* const thread* exponents,
    int step,
    thread Ahead<LOADS, ROUNDS * WORDS, ROUNDS>& ahead) {
#pragma clang loop unroll(full)
  for (int i = 0; i < LOADS; ++i) {
    ahead.values[i] = sources[i][step * 4];
  }
#pragma clang loop unroll(full)
  for (int i = 0; i < ROUNDS; ++i) {
    ahead.scale[i] = exponents[i][step];
    if (WORDS == 4) {
      uint4 w = *(const device uint4*)(weights[i] + step * 4);
      ahead.words[i * WORDS] = w.x;
      ahead.words[i * WORDS + 1 % WORDS] = w.y;
      ahead.words[i * WORDS + 2 % WORDS] = w.z;
      ahead.words[i * WORDS + 3 % WORDS] = w.w;
    } else {
#pragma clang loop unroll(full)
      for (int j = 0; j < WORDS; ++j) {
        ahead.words[i * WORDS + j] = weights[i][step * 4 + j];
      }
    }
  }
}

template <typename T, int BN, int LOADS, int ROUNDS, int WORDS, int SIMDS, bool SUBNORMAL>
METAL_FUNC void place(
    const thread Ahead<LOADS, ROUNDS * WORDS, ROUNDS>& ahead,
    threadgroup uint4* left,
    threadgroup uint4* right,
    uint simdgroup,
    uint lane) {
#pragma clang loop unroll(full)
  for (int i = 0; i < LOADS; ++i) {
    left[(i * SIMDS + int(simdgroup)) * 32 + int(lane)] = ahead.values[i];
  }
#pragma clang loop unroll(full)
  for (int i = 0; i < ROUNDS; ++i) {
    int at = int(simdgroup * 32 + lane) + i * 32 * SIMDS;
    int row = at % BN;
    decode_words<T, WORDS, SUBNORMAL>(
        ahead.words + i * WORDS, ahead.scale[i], right + (row / 8 * 4 + at / BN * WORDS) * 8 + row % 8);
  }
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
  static_assert(TM % SKIP == 0 && SKIP % 2 == 0 && TN % 2 == 0, "a simdgroup multiplies 16 rows and columns at a time");
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

  int tile_m = int(simdgroup) / SIMD_N * TM;
  int tile_n = int(simdgroup) % SIMD_N * TN;
  Ahead<LOADS, ROUNDS * WORDS, ROUNDS> ahead;
  fetch<LOADS, ROUNDS, WORDS>(sources, weights, exponents, 0, ahead);
  place<T, BN, LOADS, ROUNDS, WORDS, SIMDS, SUBNORMAL>(ahead, left, right, simdgroup, lane);
  for (int step = 0; step < STEPS; ++step) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    // The last step reads and stores once more, for nobody: cheaper than asking in every step.
    fetch<LOADS, ROUNDS, WORDS>(sources, weights, exponents, metal::min(step + 1, STEPS - 1), ahead);
    const threadgroup T* a = (const threadgroup T*)(left + (step % 2) * BM * 4) + tile_m * 256;
    const threadgroup T* b = (const threadgroup T*)(right + (step % 2) * BN * 4) + tile_n * 256;
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
    place<T, BN, LOADS, ROUNDS, WORDS, SIMDS, SUBNORMAL>(
        ahead, left + ((step + 1) % 2) * BM * 4, right + ((step + 1) % 2) * BN * 4, simdgroup, lane);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
}

// Floats between two rows of a simdgroup's 8-row strip of results on their way out, padded against bank conflicts.
constexpr int strip_stride(int tn) {
  return tn * 8 + 8;
}
