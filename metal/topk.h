// The best of a few hundred numbers by one simdgroup; ties go to the lower index, everywhere and always.
//
// Numbers become unsigned keys of the same order: GPUs reduce integers over a simdgroup in fewer steps than floats.
#pragma once
#include <metal_stdlib>
using namespace metal;

// Larger floats have larger keys; both zeros have one. No number has key 0.
METAL_FUNC uint order_key(float x) {
  uint bits = as_type<uint>(x + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

METAL_FUNC float key_value(uint key) {
  return as_type<float>((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

// This lane's keys of E logits: expert 32 i + lane in keys[i].
template <int E>
METAL_FUNC void load_keys(const device float* logits, uint lane, thread uint* keys) {
#pragma clang loop unroll(full)
  for (int i = 0; i < (E + 31) / 32; ++i) {
    int e = i * 32 + int(lane);
    keys[i] = e < E ? order_key(logits[e]) : 0u;
  }
}

// Takes the best expert out of the keys; `best` is its key, the same in all lanes.
template <int E>
METAL_FUNC int take_best(thread uint* keys, uint lane, thread uint& best) {
  constexpr int EACH = (E + 31) / 32;
  uint mine = keys[0];
  int at = int(lane);
#pragma clang loop unroll(full)
  for (int i = 1; i < EACH; ++i) {
    if (keys[i] > mine) {
      mine = keys[i];
      at = i * 32 + int(lane);
    }
  }
  best = simd_max(mine);
  int winner = metal::min(simd_min(best == mine ? at : E), E - 1);
#pragma clang loop unroll(full)
  for (int i = 0; i < EACH; ++i) {
    if (i * 32 + int(lane) == winner) {
      keys[i] = 0u;
    }
  }
  return winner;
}

// The index of the expert at `rank` (0 the best) of E logits.
template <int E>
METAL_FUNC int pick_expert(const device float* logits, int rank, uint lane) {
  uint keys[(E + 31) / 32];
  load_keys<E>(logits, lane, keys);
  uint best = 0u;
  int expert = take_best<E>(keys, lane, best);
#pragma clang loop unroll_count(1)
  for (int round = 0; round < rank; ++round) {
    expert = take_best<E>(keys, lane, best);
  }
  return expert;
}

// The TOPK best of E logits and their softmax: rank r in lane r.
template <int E, int TOPK>
METAL_FUNC void best_experts(const device float* logits, uint lane, thread int& expert, thread float& weight) {
  uint keys[(E + 31) / 32];
  load_keys<E>(logits, lane, keys);
  float top = 0.0f;
  float total = 0.0f;
  expert = 0;
  weight = 0.0f;
#pragma clang loop unroll_count(1)
  for (int round = 0; round < TOPK; ++round) {
    uint best = 0u;
    int winner = take_best<E>(keys, lane, best);
    float value = key_value(best);
    top = round == 0 ? value : top;
    float power = metal::exp(value - top);
    total += power;
    if (int(lane) == round) {
      expert = winner;
      weight = power;
    }
  }
  weight /= total;
}

// How many of E logits come before `expert`'s, in the order in which take_best takes them.
template <int E>
METAL_FUNC int rank_of(const device float* logits, int expert, uint lane) {
  uint own = order_key(logits[expert]);
  int before = 0;
  for (int e = int(lane); e < E; e += 32) {
    uint other = order_key(logits[e]);
    before += other > own || (other == own && e < expert) ? 1 : 0;
  }
  return simd_sum(before);
}

// Writes the pick at `place` of a sequence and its weight.
template <int E, int TOPK>
METAL_FUNC void tell(const device float* logits, uint lane, int place, device int* pick, device float* weight) {
  int expert = 0;
  float share = 0.0f;
  best_experts<E, TOPK>(logits, lane, expert, share);
  if (int(lane) == place) {
    *pick = expert;
    *weight = share;
  }
}
