// MXFP4, the one place that knows it: 32 values in 16 bytes of E2M1 nibbles (the low nibble first) and one E8M0 scale.
//
// An E2M1 nibble s|ee|m moved to a half's sign, low exponent bits and top mantissa bit is the value times 2^-14, zeros
// and subnormals included, so two nibbles a word apart become a half2 with two masks and two shifts. The 2^14 goes into
// the block's scale.
#pragma once
#include <metal_stdlib>
using namespace metal;

// Times 2^-14, unscaled: nibbles i and i + 4 of `word`, i = 0..3, as (x, y).
METAL_FUNC half2 mxfp4_pair(uint word, int i) {
  uint magnitude = i < 3 ? word << (9 - 4 * i) : word >> (4 * i - 9);
  uint sign = word << (12 - 4 * i);
  return as_type<half2>((magnitude & 0x0e000e00u) | (sign & 0x80008000u));
}

// All of `word` at once: pairs[i] = mxfp4_pair(word, i), in ten steps instead of fifteen.
//
// Turned by three bits, a magnitude lies six below where its sign was. Every other nibble takes the sign from the word
// and the rest from the turned one, so that one mask finishes two values; what lies between is garbage until then. `lane`
// is below 32, and times `one` the masks are no constants to a compiler that does not know: it makes two steps of a
// selection by a constant, and two shifts of a turned word of which a constant keeps some bits.
METAL_FUNC void mxfp4_pairs(uint word, uint lane, thread half2* pairs) {
  uint one = 1u + (lane >> 5);
  uint turned = (word >> 3) | (word << 29);
  uint even = ((word ^ turned) & (0x08080808u * one)) ^ turned;
  uint odd = ((word ^ turned) & (0x80808080u * one)) ^ turned;
  pairs[0] = as_type<half2>(((even << 12) | (even >> 20)) & (0x8e008e00u * one));
  pairs[1] = as_type<half2>((odd << 8) & 0x8e008e00u);
  pairs[2] = as_type<half2>((even << 4) & 0x8e008e00u);
  pairs[3] = as_type<half2>(odd & 0x8e008e00u);
}

// The block's scale times 2^14, for products with mxfp4_pair. Exact for exponents up to 240 (weights below 2^113);
// infinity above, so that a corrupt scale shows.
METAL_FUNC float mxfp4_scale(uint exponent) {
  return as_type<float>(metal::min(exponent + 14u, 255u) << 23);
}
