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

// Eight values from element 8 i.
template <typename T>
METAL_FUNC void read8(const device T* x, int i, thread float* out) {
  float4 a = read4(x, 2 * i);
  float4 b = read4(x, 2 * i + 1);
  out[0] = a.x;
  out[1] = a.y;
  out[2] = a.z;
  out[3] = a.w;
  out[4] = b.x;
  out[5] = b.y;
  out[6] = b.z;
  out[7] = b.w;
}

METAL_FUNC void read8(const device bfloat16_t* x, int i, thread float* out) {
  uint4 w = ((const device uint4*)x)[i];
  out[0] = low_bf16(w.x);
  out[1] = high_bf16(w.x);
  out[2] = low_bf16(w.y);
  out[3] = high_bf16(w.y);
  out[4] = low_bf16(w.z);
  out[5] = high_bf16(w.z);
  out[6] = low_bf16(w.w);
  out[7] = high_bf16(w.w);
}

// A permuted activation holds, for chunks of 4 L values, float4 j of every chunk together: lanes that take neighbouring
// chunks then read neighbouring float4s. Returns where float4 `i` of the plain order lies; `stride` counts chunks.
template <int L>
METAL_FUNC int permuted(int i, int stride) {
  return (i % L) * stride + i / L;
}
