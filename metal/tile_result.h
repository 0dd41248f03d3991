// What becomes of a tile's result: rows and columns of its simdgroups, and the ways out of their registers.
#pragma once
#include "swiglu.h"
#include "tiles.h"

// SIMD_M x SIMD_N simdgroups share a BM x BN tile; each holds TM x TN blocks of the result.
template <int BM, int BN, int SIMD_M, int SIMD_N>
struct TileResult {
  simdgroup_matrix<float, 8, 8> block[BM / SIMD_M / 8][BN / SIMD_N / 8];
};

// Row of the tile where block i of a simdgroup starts: sixteen rows lie together, then those of the other simdgroups.
template <int SIMD_M>
METAL_FUNC int block_row(int simdgroup, int i) {
  return (i / 2 * SIMD_M + simdgroup % SIMD_M) * 16 + i % 2 * 8;
}

// Rows of a tile of which no more than `quarters` quarters hold any: a multiple of BM / parts.
constexpr int tile_part(int bm, int parts, int quarters) {
  return (quarters * parts + 3) / 4 * (bm / parts);
}

// Floats between two rows of a simdgroup's 8-row strip of results on their way out, padded against bank conflicts.
constexpr int strip_stride(int tn) {
  return tn * 8 + 8;
}

// Puts block `i` of a simdgroup's result, eight rows, into its strip of `memory` and returns where this lane's row begins
// there, four lanes a row. A barrier stands between that row's last use and the next call.
template <int BM, int BN, int SIMD_M, int SIMD_N>
METAL_FUNC const threadgroup float* put_down(
    const thread TileResult<BM, BN, SIMD_M, SIMD_N>& result, int i, threadgroup uint4* memory, int simdgroup, uint lane) {
  constexpr int TN = BN / SIMD_N / 8;
  constexpr int STRIDE = strip_stride(TN);
  threadgroup float* strip = (threadgroup float*)memory + simdgroup * 8 * STRIDE;
#pragma clang loop unroll(full)
  for (int j = 0; j < TN; ++j) {
    simdgroup_store(result.block[i][j], strip + j * 8, STRIDE);
  }
  simdgroup_barrier(mem_flags::mem_threadgroup);
  return strip + int(lane) / 4 * STRIDE;
}

// What becomes of one expert's products with bias: h = swiglu, two units (gate and linear, four columns) to a word.
template <typename T, typename B, int N>
struct SwigluRows {
  enum { COLUMNS = 4 };
  const device B* bias;
  const device float* params;
  device T* h;

  METAL_FUNC void write(const threadgroup float* from, size_t slot, int n) const {
    float y[2];
#pragma clang loop unroll(full)
    for (int j = 0; j < 2; ++j) {
      float gate = from[2 * j] + float(bias[n + 2 * j]);
      float linear = from[2 * j + 1] + float(bias[n + 2 * j + 1]);
      y[j] = swiglu(gate, linear, params[1], params[2]);
    }
    *(device uint*)(h + slot * (N / 2) + n / 2) = pack2<T>(y[0], y[1]);
  }
};

// Or y = themselves, two columns to a word.
template <typename T, typename B, int N>
struct PlainRows {
  enum { COLUMNS = 2 };
  const device B* bias;
  device T* y;

  METAL_FUNC void write(const threadgroup float* from, size_t slot, int n) const {
    *(device uint*)(y + slot * N + n) = pack2<T>(from[0] + float(bias[n]), from[1] + float(bias[n + 1]));
  }
};

// Writes the first `valid` rows of a tile's result to slots first .. `memory` is the tile's own, no longer in use.
template <int N, typename Rows, int BM, int BN, int SIMD_M, int SIMD_N>
METAL_FUNC void write_rows(
    const thread TileResult<BM, BN, SIMD_M, SIMD_N>& result,
    const thread Rows& to,
    int first,
    int valid,
    int column,
    threadgroup uint4* memory,
    int simdgroup,
    uint lane) {
  constexpr int TN = BN / SIMD_N / 8;
  int base = column + simdgroup / SIMD_M * TN * 8;
#pragma clang loop unroll(full)
  for (int i = 0; i < BM / SIMD_M / 8; ++i) {
    int row = block_row<SIMD_M>(simdgroup, i);
    if (row < valid) {
      const threadgroup float* from = put_down(result, i, memory, simdgroup, lane);
      int r = row + int(lane) / 4;
      for (int c = int(lane) % 4 * Rows::COLUMNS; c < TN * 8; c += 4 * Rows::COLUMNS) {
        if (r < valid && base + c < N) {
          to.write(from + c, size_t(first + r), base + c);
        }
      }
      simdgroup_barrier(mem_flags::mem_threadgroup);
    }
  }
}
