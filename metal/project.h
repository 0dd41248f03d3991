// A dense projection by a whole threadgroup: the activations are staged in threadgroup memory, permuted, a tile of K at
// a time, while the first weights are on their way (one normed activation that fits whole: before them), and each
// simdgroup takes R rows. With NORM the RMS norm costs no pass of its own: the tile is multiplied by the norm's weight on
// its way in, the squares are summed meanwhile, and 1 / rms, one number an activation, multiplies the results.
#pragma once
#include "matvec.h"

// Chunks from one float4 column of the staged tile to the next: odd, so that staging hits all banks.
constexpr int tile_stride(int tile) {
  return tile | 1;
}

// float4s of threadgroup memory for S activations and a tile of `tile` chunks.
constexpr int tile_size(int format, int tile, int batch) {
  return batch * (chunk_values(format) / 4) * tile_stride(tile);
}

// matvec (see matvec.h) for one activation and all chunks of the rows. Each step of the block is replaced by the one
// UNROLL further as soon as it is used: loads never cease, in half of matvec's registers.
template <int FORMAT, int GROUP, int K, int R, int UNROLL, int L, typename Row, typename Q, typename X>
METAL_FUNC void matvec_stream(
    const device uint* weight,
    const device Q* scales,
    const device Q* biases,
    const thread Row* rows,
    X x,
    int offset,
    int stride,
    uint lane,
    thread Block<Q, R * UNROLL>& block,
    thread float* acc) {
  constexpr int COUNT = K / chunk_values(FORMAT);
  constexpr int STEPS = (COUNT + 31) / 32;
#pragma clang loop unroll(full)
  for (int step = 0; step < STEPS; ++step) {
    int u = step % UNROLL;
    multiply_step<FORMAT, R, 1, L>(block, u, lane_chunk<COUNT>(step, lane), x, &offset, stride, lane, acc);
    int next = step + UNROLL;
    if (next < STEPS) {
      if (next * 32 + 32 > COUNT) {
        clear_step<FORMAT, R>(u, block);
      }
      load_step<FORMAT, GROUP, K, R>(
          weight, scales, biases, rows, 0, next * 32 + int(lane), COUNT, u, block);
      simdgroup_barrier(mem_flags::mem_none);
    }
  }
}

// acc[s * R + r] = row r times (normed) activation s, in every lane. All threads of the threadgroup call it together.
// `x` is the activations, or anything that read4 reads.
// `restage` false reuses the tile and the sums of the call before, possible when a tile is all of K.
// STREAM: one activation that fits whole goes through matvec_stream.
template <int FORMAT, int GROUP, int K, int R, int SIMDGROUPS, int S, int TILE, int UNROLL, bool NORM, bool STREAM,
          typename Row, typename Q, typename N, typename X>
METAL_FUNC void project(
    X x,
    const device N* norm,
    float eps,
    const device uint* weight,
    const device Q* scales,
    const device Q* biases,
    const thread Row* rows,
    bool restage,
    threadgroup float4* staged,
    threadgroup float* sums,
    uint simdgroup,
    uint lane,
    thread float* acc) {
  constexpr int CHUNK = chunk_values(FORMAT);
  constexpr int CHUNKS = K / CHUNK;
  constexpr int L = CHUNK / 4;
  constexpr int STRIDE = tile_stride(TILE);
  constexpr int THREADS = 32 * SIMDGROUPS;
  // One normed activation that fits whole is staged before the weights are asked for. Behind them, a compiler that counts
  // a simdgroup's loads waits for all of them before it stages, or before the barrier.
  constexpr bool AHEAD = NORM && S == 1 && TILE >= CHUNKS;
  constexpr int EACH = AHEAD ? (CHUNKS * L + THREADS - 1) / THREADS : 1;
  int thread_index = int(simdgroup * 32 + lane);
  int offsets[S];
  float squares[S];
  float factors[S];
#pragma clang loop unroll(full)
  for (int s = 0; s < S; ++s) {
    offsets[s] = s * L * STRIDE;
    squares[s] = 0.0f;
    factors[s] = 1.0f;
  }
#pragma clang loop unroll(full)
  for (int i = 0; i < S * R; ++i) {
    acc[i] = 0.0f;
  }
  if (AHEAD && restage) {
    float4 values[EACH];
    float4 norms[EACH];
#pragma clang loop unroll(full)
    for (int i = 0; i < EACH; ++i) {
      int k4 = metal::min(i * THREADS + thread_index, CHUNKS * L - 1);
      values[i] = read4(x, k4);
      norms[i] = read4(norm, k4);
    }
    simdgroup_barrier(mem_flags::mem_none);
#pragma clang loop unroll(full)
    for (int i = 0; i < EACH; ++i) {
      int k4 = i * THREADS + thread_index;
      if (k4 < CHUNKS * L) {
        float4 y = values[i];
        squares[0] += (y.x * y.x + y.y * y.y) + (y.z * y.z + y.w * y.w);
        staged[permuted<L>(k4, STRIDE)] = y * norms[i];
      }
    }
    simdgroup_barrier(mem_flags::mem_none);
  }
  for (int first = 0; first < CHUNKS; first += TILE) {
    int count = metal::min(TILE, CHUNKS - first);
    Block<Q, R * UNROLL> block;
    load_block<FORMAT, GROUP, K, R, UNROLL>(weight, scales, biases, rows, first, 0, count, lane, block);
    if (restage || TILE < CHUNKS) {
      if (first > 0 || !restage) {
        threadgroup_barrier(mem_flags::mem_threadgroup);
      }
      for (int i = thread_index; !AHEAD && i < count * L; i += THREADS) {
        int k4 = first * L + i;
        float4 scale = NORM ? read4(norm, k4) : float4(1.0f);
#pragma clang loop unroll(full)
        for (int s = 0; s < S; ++s) {
          float4 y = read4(x, s * (K / 4) + k4);
          if (NORM) {
            squares[s] += (y.x * y.x + y.y * y.y) + (y.z * y.z + y.w * y.w);
            y = y * scale;
          }
          staged[offsets[s] + permuted<L>(i, STRIDE)] = y;
        }
      }
      if (NORM && first + TILE >= CHUNKS) {
#pragma clang loop unroll(full)
        for (int s = 0; s < S; ++s) {
          float sum = simd_sum(squares[s]);
          if (lane == 0) {
            sums[s * SIMDGROUPS + int(simdgroup)] = sum;
          }
        }
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    // Now, while the weights are on their way, not at the end, when all would wait for it.
    if (NORM && first + TILE >= CHUNKS) {
#pragma clang loop unroll(full)
      for (int s = 0; s < S; ++s) {
        float sum = 0.0f;
#pragma clang loop unroll(full)
        for (int i = 0; i < SIMDGROUPS; ++i) {
          sum += sums[s * SIMDGROUPS + i];
        }
        factors[s] = metal::rsqrt(sum * (1.0f / float(K)) + eps);
      }
    }
    const threadgroup float4* tile = staged;
    if (STREAM && S == 1 && TILE >= CHUNKS) {
      matvec_stream<FORMAT, GROUP, K, R, UNROLL, L>(
          weight, scales, biases, rows, tile, offsets[0], STRIDE, lane, block, acc);
    } else {
      matvec<FORMAT, GROUP, K, R, S, UNROLL, L>(
          weight, scales, biases, rows, tile, offsets, STRIDE, first, count, lane, block, acc);
    }
  }
#pragma clang loop unroll(full)
  for (int s = 0; s < S; ++s) {
#pragma clang loop unroll(full)
    for (int r = 0; r < R; ++r) {
      acc[s * R + r] = simd_sum(acc[s * R + r]) * factors[s];
    }
  }
}
