// Eight values a lane: how attention reads and writes keys and values of any element type.
#pragma once
#include "common.h"

// Eight values from element 8 i as they lie in memory: 4 words of two, or 8 of one. `unpack8` makes them floats; its
// pointer only says the type.
METAL_FUNC void load8(const device float* x, int i, thread uint* raw) {
  uint4 a = ((const device uint4*)x)[2 * i];
  uint4 b = ((const device uint4*)x)[2 * i + 1];
  raw[0] = a.x;
  raw[1] = a.y;
  raw[2] = a.z;
  raw[3] = a.w;
  raw[4] = b.x;
  raw[5] = b.y;
  raw[6] = b.z;
  raw[7] = b.w;
}

METAL_FUNC void load4_words(const device uint4* x, int i, thread uint* raw) {
  uint4 a = x[i];
  raw[0] = a.x;
  raw[1] = a.y;
  raw[2] = a.z;
  raw[3] = a.w;
}

METAL_FUNC void load8(const device half* x, int i, thread uint* raw) {
  load4_words((const device uint4*)x, i, raw);
}

METAL_FUNC void load8(const device bfloat16_t* x, int i, thread uint* raw) {
  load4_words((const device uint4*)x, i, raw);
}

METAL_FUNC void unpack8(const device float*, const thread uint* raw, thread float* out) {
#pragma clang loop unroll(full)
  for (int i = 0; i < 8; ++i) {
    out[i] = as_type<float>(raw[i]);
  }
}

METAL_FUNC void unpack8(const device half*, const thread uint* raw, thread float* out) {
#pragma clang loop unroll(full)
  for (int i = 0; i < 4; ++i) {
    half2 h = as_type<half2>(raw[i]);
    out[2 * i] = float(h.x);
    out[2 * i + 1] = float(h.y);
  }
}

METAL_FUNC void unpack8(const device bfloat16_t*, const thread uint* raw, thread float* out) {
#pragma clang loop unroll(full)
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = low_bf16(raw[i]);
    out[2 * i + 1] = high_bf16(raw[i]);
  }
}

// Eight values from element 8 i.
METAL_FUNC void read8(const device float* x, int i, thread float* out) {
  uint raw[8];
  load8(x, i, raw);
  unpack8(x, raw, out);
}

// Two 16-bit values of a word. The pointer only says their type.
METAL_FUNC float2 unpack2(const device bfloat16_t*, uint word) {
  return float2(low_bf16(word), high_bf16(word));
}

METAL_FUNC float2 unpack2(const device half*, uint word) {
  half2 h = as_type<half2>(word);
  return float2(float(h.x), float(h.y));
}

METAL_FUNC float2 unpack2(const device float*, uint word) {
  return float2(as_type<float>(word), 0.0f);
}

// Puts what load8 took at element 8 i.
METAL_FUNC void store8(device float* x, int i, const thread uint* raw) {
#pragma clang loop unroll(full)
  for (int j = 0; j < 8; ++j) {
    x[8 * i + j] = as_type<float>(raw[j]);
  }
}

METAL_FUNC void store8(device half* x, int i, const thread uint* raw) {
  ((device uint4*)x)[i] = uint4(raw[0], raw[1], raw[2], raw[3]);
}

METAL_FUNC void store8(device bfloat16_t* x, int i, const thread uint* raw) {
  ((device uint4*)x)[i] = uint4(raw[0], raw[1], raw[2], raw[3]);
}
