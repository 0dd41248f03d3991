// Tiles of 16-bit floats in threadgroup memory, as 8x8 blocks that simdgroup matrices load without bank conflicts.
//
// A block is 64 neighbouring values, row by row: 8 uint4, one a row. Blocks lie along k, then along the rows, so the
// uint4 of row r, values 8 c .. 8 c + 7, is number (r / 8 * CHUNKS + c) * 8 + r % 8 of a tile CHUNKS * 8 values wide.
#pragma once
#include <metal_stdlib>
#include <metal_simdgroup_matrix>
using namespace metal;

// [d0; d1] += [a00 a01; a10 a11] [b0; b1], 8x8 each. Tensor cores take the sixteen rows and columns at once.
template <typename T>
METAL_FUNC void multiply_16x8x16(
    thread simdgroup_matrix<float, 8, 8>& d0,
    thread simdgroup_matrix<float, 8, 8>& d1,
    const thread simdgroup_matrix<T, 8, 8>& a00,
    const thread simdgroup_matrix<T, 8, 8>& a01,
    const thread simdgroup_matrix<T, 8, 8>& a10,
    const thread simdgroup_matrix<T, 8, 8>& a11,
    const thread simdgroup_matrix<T, 8, 8>& b0,
    const thread simdgroup_matrix<T, 8, 8>& b1) {
#ifdef SIMDGROUP_MATRIX_16X8X16
  simdgroup_multiply_accumulate_16x8x16(d0, d1, a00, a01, a10, a11, b0, b1);
#else
  simdgroup_multiply_accumulate(d0, a00, b0, d0);
  simdgroup_multiply_accumulate(d1, a10, b0, d1);
  simdgroup_multiply_accumulate(d0, a01, b1, d0);
  simdgroup_multiply_accumulate(d1, a11, b1, d1);
#endif
}

// Two floats as a word of two bfloats or two halves, rounded to nearest.
template <typename T>
METAL_FUNC uint pack2(float low, float high) {
  vec<T, 2> pair;
  pair.x = T(low);
  pair.y = T(high);
  return as_type<uint>(pair);
}

// Four 8x8 blocks as a 2 x 2 square of left-hand operands: rows are `pitch` values apart, the next block to the right
// `right`, the one below `down`. Rows start on 16 bytes.
template <typename T>
METAL_FUNC void load_left(
    thread simdgroup_matrix<T, 8, 8>& a00,
    thread simdgroup_matrix<T, 8, 8>& a01,
    thread simdgroup_matrix<T, 8, 8>& a10,
    thread simdgroup_matrix<T, 8, 8>& a11,
    const threadgroup T* p,
    int pitch,
    int right,
    int down) {
#ifdef SIMDGROUP_MATRIX_16X8X16
  simdgroup_load_left_2x2(a00, a01, a10, a11, p, pitch, right, down);
#else
  simdgroup_load(a00, p, pitch);
  simdgroup_load(a01, p + right, pitch);
  simdgroup_load(a10, p + down, pitch);
  simdgroup_load(a11, p + down + right, pitch);
#endif
}

// Four blocks of right-hand operands: `b0` and `b1` follow each other along k, `c0` and `c1` are the next 8 columns.
// Blocks lie at p, p + along, p + beside, p + beside + along; with TRANSPOSE each is stored column by column.
template <bool TRANSPOSE, typename T>
METAL_FUNC void load_right(
    thread simdgroup_matrix<T, 8, 8>& b0,
    thread simdgroup_matrix<T, 8, 8>& b1,
    thread simdgroup_matrix<T, 8, 8>& c0,
    thread simdgroup_matrix<T, 8, 8>& c1,
    const threadgroup T* p,
    int pitch,
    int along,
    int beside) {
#ifdef SIMDGROUP_MATRIX_16X8X16
  simdgroup_load_right_2x2<TRANSPOSE>(b0, b1, c0, c1, p, pitch, along, beside);
#else
  simdgroup_load(b0, p, pitch, ulong2(0, 0), TRANSPOSE);
  simdgroup_load(b1, p + along, pitch, ulong2(0, 0), TRANSPOSE);
  simdgroup_load(c0, p + beside, pitch, ulong2(0, 0), TRANSPOSE);
  simdgroup_load(c1, p + beside + along, pitch, ulong2(0, 0), TRANSPOSE);
#endif
}
