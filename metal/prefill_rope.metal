// computes     q, k, v of a prompt from the fused projection: bias added, YaRN's rotation applied to q and k.
// shapes       qkv [L, (HEADS + 2 KV_HEADS) * 64] (the product alone); bias [(HEADS + 2 KV_HEADS) * 64];
//              rope [L, 64] f32, 32 cosines then 32 sines a position, YaRN's concentration included;
//              q [L, HEADS, 64]; k, v [KV_HEADS, L, 64]; params i32 [8], [0] = L.
// grid         (HEADS + 2 KV_HEADS) x ceil(L / (THREADS / 8)) threadgroups.
// threadgroup  THREADS threads, no threadgroup memory; 8 threads a head, each values 4 i .. 4 i + 3 and 32 further.
// bytes        qkv once, q, k and v once, rope once a head (from cache).
// why          bias, two rotations, their YaRN scaling and the two transposes are nine stock launches.
// reference    mlx_gptoss/kernels/prefill_qkv.py, prefill_rope_twin.
#include "common.h"

template <typename T, typename B, int HEADS, int KV_HEADS, int THREADS>
[[kernel]] void prefill_rope(
    const device T* qkv [[buffer(0)]],
    const device B* bias [[buffer(1)]],
    const device float* rope [[buffer(2)]],
    const device int* params [[buffer(3)]],
    device T* q [[buffer(4)]],
    device T* k [[buffer(5)]],
    device T* v [[buffer(6)]],
    uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]],
    uint thread_index_in_threadgroup [[thread_index_in_threadgroup]]) {
  constexpr int ALL = HEADS + 2 * KV_HEADS;
  int length = params[0];
  int head = int(threadgroup_position_in_grid.x);
  int i = int(thread_index_in_threadgroup) % 8;
  int position = int(threadgroup_position_in_grid.y) * (THREADS / 8) + int(thread_index_in_threadgroup) / 8;
  if (position < length) {
    const device T* from = qkv + (size_t(position) * ALL + head) * 64;
    float4 low = read4(from, i) + read4(bias + head * 64, i);
    float4 high = read4(from, i + 8) + read4(bias + head * 64, i + 8);
    if (head < HEADS + KV_HEADS) {
      float4 cosine = read4(rope + position * 64, i);
      float4 sine = read4(rope + position * 64, i + 8);
      float4 turned = low * cosine - high * sine;
      high = high * cosine + low * sine;
      low = turned;
    }
    device T* to = q + (size_t(position) * HEADS + head) * 64;
    if (head >= HEADS + KV_HEADS) {
      to = v + (size_t(head - HEADS - KV_HEADS) * length + position) * 64;
    } else if (head >= HEADS) {
      to = k + (size_t(head - HEADS) * length + position) * 64;
    }
#pragma clang loop unroll(full)
    for (int j = 0; j < 4; ++j) {
      to[4 * i + j] = T(low[j]);
      to[32 + 4 * i + j] = T(high[j]);
    }
  }
}
