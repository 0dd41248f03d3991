// Activations packed as halves, for products in halves (halves.h).
//
// Each block of 32 values is brought to where sums of halves have most room by a power of two of its own, so that nothing
// overflows and what a half cannot hold is 2^-11 of a value (at worst more of one below 2^-(10 + room) of the block's largest).
// Eight values of a chunk, in the order of unpack_pairs, are a uint4; those of every chunk lie together, so that lanes with
// neighbouring chunks read neighbouring uint4s. Behind them are the floats that undo the blocks' powers of two, and for
// affine formats the sums of the chunks. (For MXFP4 also in mlx_gptoss/kernels/halves.py.)
#pragma once
#include "chunks.h"

// uint4s of an activation packed for MXFP4, of `blocks` blocks.
constexpr int halves_size(int blocks) {
  return 4 * blocks + (blocks + 3) / 4;
}

// Values of one activation that a lane takes at a time: of 6-bit weights twice as many where rows are whole steps of that.
constexpr int halves_chunk(int format, int columns) {
  return format == FORMAT_Q6 && columns % 1024 == 0 ? 32 : chunk_values(format);
}

// Whether a word's values come as halves in the order 0 4, 1 5, 2 6, 3 7; otherwise they are bytes, and come as 0 2, 1 3,
// or have six bits each, and a chunk's come as in unpack_pairs.
constexpr bool halves_of_nibbles(int format) {
  return format_bits(format) == 4;
}

// Which half value `e` of block `b` is, packed for MXFP4.
constexpr int halves_place(int blocks, int b, int e) {
  return (e / 8 * blocks + b) * 8 + 2 * (e % 4) + e % 8 / 4;
}

// The largest of a block comes to 2^room .. 2^(room + 1): as high as a half allows for MXFP4, whose weights come times
// 2^-14, and for the others so that the sums stay below 65504: 16 products with a weight of at most 8 (Q4) or 32 (Q6), 8 with
// one of 1.75 (MXFP8) or 128 (Q8).
constexpr uint halves_room(int format) {
  return format == FORMAT_MXFP4 ? 14 : format == FORMAT_MXFP8 ? 11 : format == FORMAT_Q4 ? 7 : format == FORMAT_Q6 ? 5 : 4;
}

// What affine weights are counted from, in steps of their scale.
constexpr float halves_centre(int format) {
  return format == FORMAT_Q8 ? 128.0f : format == FORMAT_Q6 ? 32.0f : format == FORMAT_Q4 ? 8.0f : 0.0f;
}

// The exponent that stands for a block whose largest magnitude is `largest`; blocks below 2^-97 stay smaller.
METAL_FUNC uint halves_exponent(float largest) {
  return metal::max(as_type<uint>(largest) >> 23 & 0xffu, 30u);
}

METAL_FUNC float halves_up(int format, uint exponent) {
  return as_type<float>((254u + halves_room(format) - exponent) << 23);
}

// The inverse of halves_up.
METAL_FUNC float halves_down(int format, uint exponent) {
  return as_type<float>((exponent - halves_room(format)) << 23);
}

// The exponent of every block of h = swiglu(gate, linear), in whatever order it is written: a gate times its sigmoid is not
// below -0.279 / alpha, so no h is larger than this.
METAL_FUNC uint inner_exponent(float limit, float alpha) {
  return halves_exponent(metal::max(limit, 0.28f / alpha) * (limit + 1.0f));
}

METAL_FUNC uint two_halves(float x, float y) {
  return as_type<uint>(half2(float2(x, y)));
}

METAL_FUNC float largest_of(float4 v) {
  return metal::max(metal::max(metal::fabs(v.x), metal::fabs(v.y)), metal::max(metal::fabs(v.z), metal::fabs(v.w)));
}

// The largest magnitude over the eight lanes that have a block's values.
METAL_FUNC float largest_of_block(float4 v) {
  float largest = largest_of(v);
  largest = metal::max(largest, simd_shuffle_xor(largest, ushort(1)));
  largest = metal::max(largest, simd_shuffle_xor(largest, ushort(2)));
  return metal::max(largest, simd_shuffle_xor(largest, ushort(4)));
}
