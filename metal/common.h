// Reads that turn any of our element types into floats, and the layout of permuted activations.
#pragma once
#include <metal_stdlib>
using namespace metal;

METAL_FUNC float low_bf16(uint word) {
  return as_type<float>(word << 16);
}

METAL_FUNC float high_bf16(uint word) {
  return as_type<float>(word & 0xffff0000u);
}

// The i-th group of four values, as floats.
METAL_FUNC float4 read4(const threadgroup float4* x, int i) {
  return x[i];
}

METAL_FUNC float4 read4(const device float* x, int i) {
  return ((const device float4*)x)[i];
}

METAL_FUNC float4 read4(const device half* x, int i) {
  uint2 w = ((const device uint2*)x)[i];
  half2 a = as_type<half2>(w.x);
  half2 b = as_type<half2>(w.y);
  return float4(float(a.x), float(a.y), float(b.x), float(b.y));
}

METAL_FUNC float4 read4(const device bfloat16_t* x, int i) {
  uint2 w = ((const device uint2*)x)[i];
  return float4(low_bf16(w.x), high_bf16(w.x), low_bf16(w.y), high_bf16(w.y));
}

// The i-th of what is read once, as weights are: where a GPU can be told, it leaves its smallest cache to what is read
// again.
template <typename T>
METAL_FUNC T read_once(const device T* x, int i) {
#ifdef DEVICE_READ_ONCE
  return device_read_once(x + i);
#else
  return x[i];
#endif
}

// (a & b) | c, in one step where a GPU has it: a compiler makes two of it for constants.
METAL_FUNC uint and_or(uint a, uint b, uint c) {
#ifdef DEVICE_AND_OR
  return device_and_or(a, b, c);
#else
  return (a & b) | c;
#endif
}

// A permuted activation holds, for chunks of 4 L values, float4 j of every chunk together: lanes that take neighbouring
// chunks then read neighbouring float4s. Returns where float4 `i` of the plain order lies; `stride` counts chunks.
template <int L>
METAL_FUNC int permuted(int i, int stride) {
  return (i % L) * stride + i / L;
}
