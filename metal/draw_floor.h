// Top-k, top-p and min-p: the least scaled logit (0 is the best) that a row may draw
// (from its 64 best where they suffice, and from the whole row where they do not).
#pragma once
#include "draw.h"

// The 64 best of a row, two a lane: scaled logits, their weights and ids. Every simdgroup holds the same.
struct Candidates {
  float scaled[2];
  float weight[2];
  int id[2];
  float least;
};

METAL_FUNC void load_candidates(
    const device float* best, const device int* best_ids, float peak, float inverse, uint lane,
    thread Candidates& found) {
  for (int i = 0; i < 2; ++i) {
    int id = best_ids[i * 32 + int(lane)];
    float scaled = (best[i * 32 + int(lane)] - peak) * inverse;
    found.id[i] = id;
    found.scaled[i] = id < 0 ? negative_infinity() : scaled;
    found.weight[i] = metal::exp(found.scaled[i]);
  }
  found.least = simd_shuffle(found.scaled[1], ushort(31));
}

// The scaled logit at a place of the 64, the same for all lanes.
METAL_FUNC float candidate_at(const thread Candidates& best, int place) {
  float low = simd_shuffle(best.scaled[0], ushort(place % 32));
  float high = simd_shuffle(best.scaled[1], ushort(place % 32));
  return place < 32 ? low : high;
}

// Whether all that lies at or above `floor` is among the 64.
METAL_FUNC bool holds_all(const thread Candidates& best, float floor) {
  return floor > best.least || best.least == negative_infinity();
}

METAL_FUNC float held_of(float logit, float peak, float inverse, float floor, bool counting) {
  float scaled = (logit - peak) * inverse;
  return scaled >= floor ? (counting ? 1.0f : metal::exp(scaled)) : 0.0f;
}

// What a row holds at or above `floor` (a scaled logit, 0 the best): its weight, or how many.
template <int N, int SIMDGROUPS>
METAL_FUNC float held(
    const device float* row, float peak, float inverse, float floor, bool counting, threadgroup float* room,
    uint simdgroup, uint lane) {
  // Rows start on 16 bytes when their length allows.
  constexpr int FOURS = N % 4 == 0 ? N / 4 : 0;
  int thread_index = int(simdgroup * 32 + lane);
  float own = 0.0f;
#pragma clang loop unroll_count(4)
  for (int at = thread_index; at < FOURS; at += 32 * SIMDGROUPS) {
    float4 four = ((const device float4*)row)[at];
    own += held_of(four.x, peak, inverse, floor, counting) + held_of(four.y, peak, inverse, floor, counting);
    own += held_of(four.z, peak, inverse, floor, counting) + held_of(four.w, peak, inverse, floor, counting);
  }
#pragma clang loop unroll_count(1)
  for (int at = 4 * FOURS + thread_index; at < N; at += 32 * SIMDGROUPS) {
    own += held_of(row[at], peak, inverse, floor, counting);
  }
  float total = 0.0f;
  running_sum<SIMDGROUPS>(own, room, simdgroup, lane, total);
  return total;
}

// The highest floor, at most `least`, at or above which a row holds `wanted`: exact, by bisection over the bits of its
// magnitude. Nothing below -104 has weight in float32.
template <int N, int SIMDGROUPS>
METAL_FUNC float floor_holding(
    const device float* row, float peak, float inverse, float least, float wanted, bool counting,
    threadgroup float* room, uint simdgroup, uint lane) {
  uint low = as_type<uint>(metal::fabs(least));
  uint high = counting ? 0x7f800000u : 0x42d00000u;
#pragma clang loop unroll_count(1)
  while (low < high) {
    uint middle = low + (high - low) / 2;
    float floor = -as_type<float>(middle);
    if (held<N, SIMDGROUPS>(row, peak, inverse, floor, counting, room, simdgroup, lane) >= wanted) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return -as_type<float>(low);
}

// The floor of a row with the settings of draw_token; `total` is the row's weight.
template <int N, int SIMDGROUPS>
METAL_FUNC float floor_of(
    const device float* row, const device float* setting, const thread Candidates& best, float peak, float total,
    threadgroup float* room, uint simdgroup, uint lane) {
  float inverse = setting[0];
  int top_k = int(setting[2]);
  float top_p = setting[3];
  float floor = negative_infinity();
  if (top_k > 64) {
    floor = floor_holding<N, SIMDGROUPS>(row, peak, inverse, best.least, float(top_k), true, room, simdgroup, lane);
  } else if (top_k > 0) {
    floor = candidate_at(best, top_k - 1);
  }
  if (top_p < 1.0f) {
    float first = best.scaled[0] >= floor ? best.weight[0] : 0.0f;
    float second = best.scaled[1] >= floor ? best.weight[1] : 0.0f;
    float upto_first = simd_prefix_inclusive_sum(first);
    float upto_second = simd_sum(first) + simd_prefix_inclusive_sum(second);
    bool complete = holds_all(best, floor);
    float mass = total;
    if (complete) {
      mass = simd_shuffle(upto_second, ushort(31));
    } else if (floor > negative_infinity()) {
      mass = held<N, SIMDGROUPS>(row, peak, inverse, floor, false, room, simdgroup, lane);
    }
    float wanted = top_p * mass;
    int place = simd_min(upto_first >= wanted ? int(lane) : (upto_second >= wanted ? 32 + int(lane) : 64));
    float reached = candidate_at(best, place);
    if (place < 64) {
      floor = metal::max(floor, reached);
    } else if (!complete) {
      // Sums in different orders may differ in the last bit: what this sum finds in the row is always reached.
      mass = held<N, SIMDGROUPS>(row, peak, inverse, floor, false, room, simdgroup, lane);
      wanted = metal::min(wanted, mass);
      floor = metal::max(
          floor, floor_holding<N, SIMDGROUPS>(row, peak, inverse, best.least, wanted, false, room, simdgroup, lane));
    }
  }
  return metal::max(floor, setting[4]);
}

// The token among the 64 whose share, in the vocabulary's order, covers the number.
METAL_FUNC int pick_candidate(const thread Candidates& best, float floor, float number) {
  float first = best.scaled[0] >= floor ? best.weight[0] : 0.0f;
  float second = best.scaled[1] >= floor ? best.weight[1] : 0.0f;
  float before_first = 0.0f;
  float before_second = 0.0f;
#pragma clang loop unroll_count(4)
  for (int from = 0; from < 32; ++from) {
    float other = simd_shuffle(first, ushort(from));
    int other_id = simd_shuffle(best.id[0], ushort(from));
    before_first += other_id < best.id[0] ? other : 0.0f;
    before_second += other_id < best.id[1] ? other : 0.0f;
  }
#pragma clang loop unroll_count(4)
  for (int from = 0; from < 32; ++from) {
    float other = simd_shuffle(second, ushort(from));
    int other_id = simd_shuffle(best.id[1], ushort(from));
    before_first += other_id < best.id[0] ? other : 0.0f;
    before_second += other_id < best.id[1] ? other : 0.0f;
  }
  float target = number * (simd_sum(first) + simd_sum(second));
  int passing_first = first > 0.0f && before_first + first > target ? best.id[0] : 0x7fffffff;
  int passing_second = second > 0.0f && before_second + second > target ? best.id[1] : 0x7fffffff;
  int passing = simd_min(metal::min(passing_first, passing_second));
  int last = simd_max(metal::max(first > 0.0f ? best.id[0] : -1, second > 0.0f ? best.id[1] : -1));
  return passing == 0x7fffffff ? last : passing;
}
