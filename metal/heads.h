// Where a projected pair of rows goes: queries and keys rotated, values as they are.
#pragma once
#include "common.h"

// Rows d and d + 32 of `head`, of the queries', keys' and values' heads in that order, of sequence s.
template <int HEADS, int KV_HEADS, typename T>
METAL_FUNC void write_pair(
    float low, float high, float cosine, float sine, int head, int d, int s, device float* q, device T* k, device T* v) {
  float turned_low = low * cosine - high * sine;
  float turned_high = high * cosine + low * sine;
  if (head < HEADS) {
    int at = (s * HEADS + head) * 64 + d;
    q[at] = turned_low;
    q[at + 32] = turned_high;
  } else if (head < HEADS + KV_HEADS) {
    int at = (s * KV_HEADS + head - HEADS) * 64 + d;
    k[at] = T(turned_low);
    k[at + 32] = T(turned_high);
  } else {
    int at = (s * KV_HEADS + head - HEADS - KV_HEADS) * 64 + d;
    v[at] = T(low);
    v[at + 32] = T(high);
  }
}
