// The best of a few hundred numbers by one simdgroup; ties go to the lower index, everywhere and always.
#pragma once
#include <metal_stdlib>
using namespace metal;

// The index of the expert at `rank` (0 the best) of E logits, and its softmax weight among the TOPK best.
template <int E, int TOPK>
METAL_FUNC int pick_expert(const device float* logits, int rank, uint lane, thread float& weight) {
  constexpr int EACH = (E + 31) / 32;
  float mine[EACH];
  for (int i = 0; i < EACH; ++i) {
    int e = i * 32 + int(lane);
    mine[i] = e < E ? logits[e] : as_type<float>(0xff800000u);
  }
  float top = 0.0f;
  float total = 0.0f;
  float chosen = 0.0f;
  int expert = 0;
#pragma clang loop unroll(disable)
  for (int round = 0; round < TOPK; ++round) {
    float best = mine[0];
    int at = int(lane);
    for (int i = 1; i < EACH; ++i) {
      if (mine[i] > best) {
        best = mine[i];
        at = i * 32 + int(lane);
      }
    }
    float value = simd_max(best);
    int winner = simd_min(best == value ? at : E);
    winner = metal::min(winner, E - 1);
    for (int i = 0; i < EACH; ++i) {
      if (i * 32 + int(lane) == winner) {
        mine[i] = as_type<float>(0xff800000u);
      }
    }
    top = round == 0 ? value : top;
    float power = metal::exp(value - top);
    total += power;
    if (round == rank) {
      chosen = power;
      expert = winner;
    }
  }
  weight = chosen / total;
  return expert;
}

// How many of E logits come before `expert`'s.
template <int E>
METAL_FUNC int rank_of(const device float* logits, int expert, uint lane) {
  float own = logits[expert];
  int before = 0;
  for (int e = int(lane); e < E; e += 32) {
    float other = logits[e];
    before += other > own || (other == own && e < expert) ? 1 : 0;
  }
  return simd_sum(before);
}
