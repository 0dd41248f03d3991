// MXFP4 as the 16-bit floats of a matrix operand, with its scale, a word of eight at a time.
#pragma once
#include "mxfp4.h"
#include "tiles.h"

// A word's lower (upper) four nibbles so that neighbours lie 16 bits apart, as mxfp4_pair wants them: 0 and 1 for pair
// 0, 2 and 3 for pair 2. Other bits are left over from their neighbours.
METAL_FUNC uint spread_low(uint word) {
  return (word & 0x0000ffffu) | (word << 12);
}

METAL_FUNC uint spread_high(uint word) {
  return (word >> 16) | ((word >> 4) & 0xffff0000u);
}

// Eight weights of one word, still without their scale. The device multiplies 16-bit subnormals exactly: a nibble moved
// into a bfloat is its value times 2^-126.
METAL_FUNC uint4 decode_word_subnormal(uint word) {
  bfloat2 up = as_type<bfloat2>(0x7e807e80u);
  uint low = spread_low(word);
  uint high = spread_high(word);
  uint4 out;
  out.x = as_type<uint>(as_type<bfloat2>(((low << 6) & 0x01c001c0u) | ((low << 12) & 0x80008000u)) * up);
  out.y = as_type<uint>(as_type<bfloat2>(((low >> 2) & 0x01c001c0u) | ((low << 4) & 0x80008000u)) * up);
  out.z = as_type<uint>(as_type<bfloat2>(((high << 6) & 0x01c001c0u) | ((high << 12) & 0x80008000u)) * up);
  out.w = as_type<uint>(as_type<bfloat2>(((high >> 2) & 0x01c001c0u) | ((high << 4) & 0x80008000u)) * up);
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

// COUNT words of a block with this exponent. No branches: a product's instructions can mix with these.
template <typename T, int COUNT, bool SUBNORMAL>
METAL_FUNC void decode_words(const thread uint* words, uint exponent, thread uint4* to) {
  // The exponent of zero stands for 2^-127, a subnormal bfloat.
  bfloat2 factor = twice(metal::max(exponent << 7, 0x40u));
  float scale = mxfp4_scale(exponent);
#pragma clang loop unroll(full)
  for (int j = 0; j < COUNT; ++j) {
    to[j] = SUBNORMAL ? scaled(decode_word_subnormal(words[j]), factor) : decode_word<T>(words[j], scale);
  }
}
