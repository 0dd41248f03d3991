// computes     the token whose share of a row's weights covers a number in [0, 1), after top-k, top-p and min-p.
// shapes       logits, raw [S, N] f32; parts, raw_parts f32 [S, CHUNKS, 4] (draw_parts of them); settings f32 [S, 8]:
//              1 / temperature, number, top-k (0: all), top-p, log of min-p; best f32 and best_ids i32 [S, 64] (the
//              row's largest, top_tokens; not read without TRUNCATED);
//              tokens i32 [S]; peaks [S], the largest logit or NaN; logprobs [S] of the tokens in raw; totals [S], the
//              log of raw's summed exp.
// grid         S threadgroups.
// threadgroup  32 SIMDGROUPS threads.
// bytes        parts and one chunk; with TRUNCATED the candidates, and the row when they do not hold all that is kept.
// why          with draw_parts two launches, four where candidates are wanted; nothing is sorted and nobody waits.
// reference    mlx_gptoss/kernels/draw_twin.py.
#include "draw_floor.h"

template <int N, int CHUNK, int SIMDGROUPS, bool TRUNCATED>
[[kernel]] void draw_token(
    const device float* logits [[buffer(0)]],
    const device float* parts [[buffer(1)]],
    const device float* raw [[buffer(2)]],
    const device float* raw_parts [[buffer(3)]],
    const device float* settings [[buffer(4)]],
    const device float* best [[buffer(5)]],
    const device int* best_ids [[buffer(6)]],
    device int* tokens [[buffer(7)]],
    device float* peaks [[buffer(8)]],
    device float* logprobs [[buffer(9)]],
    device float* totals [[buffer(10)]],
    uint3 threadgroup_position_in_grid [[threadgroup_position_in_grid]],
    uint simdgroup_index_in_threadgroup [[simdgroup_index_in_threadgroup]],
    uint thread_index_in_simdgroup [[thread_index_in_simdgroup]]) {
  constexpr int THREADS = 32 * SIMDGROUPS;
  constexpr int CHUNKS = N > CHUNK ? (N + CHUNK - 1) / CHUNK : 2;
  constexpr int SPAN = (CHUNKS + THREADS - 1) / THREADS;
  constexpr int EACH = (CHUNK + THREADS - 1) / THREADS;
  threadgroup float weights[CHUNKS];
  threadgroup float room[SIMDGROUPS];
  threadgroup int picks[2 * SIMDGROUPS];
  threadgroup float share[1];
  threadgroup int chosen[1];
  uint simdgroup = simdgroup_index_in_threadgroup;
  uint lane = thread_index_in_simdgroup;
  int thread_index = int(simdgroup * 32 + lane);
  int row = int(threadgroup_position_in_grid.x);
  const device float* line = logits + row * N;
  const device float* part = parts + row * CHUNKS * 4;
  float inverse = settings[row * 8];
  float number = settings[row * 8 + 1];

  float peak = negative_infinity();
  for (int c = thread_index; c < CHUNKS; c += THREADS) {
    peak = metal::max(peak, part[4 * c]);
  }
  peak = group_max<SIMDGROUPS>(peak, room, simdgroup, lane);
  for (int c = thread_index; c < CHUNKS; c += THREADS) {
    float sum = part[4 * c + 1];
    weights[c] = sum == 0.0f ? 0.0f : sum * metal::exp((part[4 * c] - peak) * inverse);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float own = span_sum<CHUNKS, SPAN>(weights, thread_index);
  float total = 0.0f;
  float end = running_sum<SIMDGROUPS>(own, room, simdgroup, lane, total);
  float checked = total == total ? peak : as_type<float>(0x7fc00000u);

  float floor = negative_infinity();
  int token = -1;
  if (TRUNCATED && metal::isfinite(checked)) {
    Candidates candidates;
    load_candidates(best + row * 64, best_ids + row * 64, peak, inverse, lane, candidates);
    floor = floor_of<N, SIMDGROUPS>(line, settings + row * 8, candidates, peak, total, room, simdgroup, lane);
    if (floor > negative_infinity() && holds_all(candidates, floor)) {
      token = pick_candidate(candidates, floor, number);
    } else if (floor > negative_infinity()) {
      threadgroup_barrier(mem_flags::mem_threadgroup);
#pragma clang loop unroll_count(1)
      for (int c = int(simdgroup); c < CHUNKS; c += SIMDGROUPS) {
        float sum = 0.0f;
#pragma clang loop unroll_count(2)
        for (int at = c * CHUNK + int(lane); at < metal::min((c + 1) * CHUNK, N); at += 32) {
          float value = (line[at] - peak) * inverse;
          sum += value >= floor ? metal::exp(value) : 0.0f;
        }
        sum = simd_sum(sum);
        if (lane == 0) {
          weights[c] = sum;
        }
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
      own = span_sum<CHUNKS, SPAN>(weights, thread_index);
      end = running_sum<SIMDGROUPS>(own, room, simdgroup, lane, total);
    }
  }

  if (token < 0) {
    // The chunk that the number falls into, then the token inside it.
    float target = number * total;
    int owner = pick_thread<SIMDGROUPS>(own, end, target, picks, simdgroup, lane);
    if (thread_index == metal::max(owner, 0)) {
      float passed = end - own;
      int chunk = 0;
      float inside = 0.0f;
      bool found = false;
      for (int c = thread_index * SPAN; c < metal::min((thread_index + 1) * SPAN, CHUNKS); ++c) {
        if (weights[c] > 0.0f && (!found || passed <= target)) {
          chunk = c;
          found = true;
          inside = metal::max(target - passed, 0.0f) / weights[c];
        }
        passed += weights[c];
      }
      chosen[0] = chunk;
      share[0] = metal::min(inside, 1.0f);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    int chunk = chosen[0];
    // Beside the chunk's own largest, so that a chunk of little weight still has some.
    float highest = part[4 * chunk];
    float mine[EACH];
    float sum = 0.0f;
    for (int i = 0; i < EACH; ++i) {
      int inside = thread_index * EACH + i;
      int at = chunk * CHUNK + inside;
      float value = inside < CHUNK && at < N ? line[at] : negative_infinity();
      bool kept = floor == negative_infinity() || (value - peak) * inverse >= floor;
      mine[i] = kept ? weight_of(value, highest, inverse) : 0.0f;
      sum += mine[i];
    }
    float whole = 0.0f;
    float upto = running_sum<SIMDGROUPS>(sum, room, simdgroup, lane, whole);
    target = share[0] * whole;
    owner = pick_thread<SIMDGROUPS>(sum, upto, target, picks, simdgroup, lane);
    if (thread_index == metal::max(owner, 0)) {
      float passed = upto - sum;
      int place = 0;
      bool found = false;
      for (int i = 0; i < EACH; ++i) {
        if (mine[i] > 0.0f && (!found || passed <= target)) {
          place = i;
          found = true;
        }
        passed += mine[i];
      }
      chosen[0] = chunk * CHUNK + thread_index * EACH + place;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    token = metal::min(chosen[0], N - 1);
  }

  const device float* raw_part = raw_parts + row * CHUNKS * 4;
  float raw_peak = negative_infinity();
  for (int c = thread_index; c < CHUNKS; c += THREADS) {
    raw_peak = metal::max(raw_peak, raw_part[4 * c]);
  }
  raw_peak = group_max<SIMDGROUPS>(raw_peak, room, simdgroup, lane);
  float plain = 0.0f;
  for (int c = thread_index; c < CHUNKS; c += THREADS) {
    float sum = raw_part[4 * c + 2];
    plain += sum == 0.0f ? 0.0f : sum * metal::exp(raw_part[4 * c] - raw_peak);
  }
  float whole = 0.0f;
  running_sum<SIMDGROUPS>(plain, room, simdgroup, lane, whole);
  if (thread_index == 0) {
    float log_total = raw_peak + metal::log(whole);
    tokens[row] = token;
    peaks[row] = checked;
    logprobs[row] = raw[row * N + token] - log_total;
    totals[row] = log_total;
  }
}
