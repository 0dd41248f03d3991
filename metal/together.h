// Products of four simdgroups together, and copies past the registers.
//
// Where a device has them they run on their own, beside other work (cuda_shim_simd.h); elsewhere they are done on the spot.
#pragma once
#include "tiles.h"

// Operands of four simdgroups that multiply together: rows of 64 values of 16 bits, eight uint4s each. Where uint4 `chunk`
// of a row lies: as 8x8 blocks, or how the device's own product wants it.
METAL_FUNC int operand_place(int row, int chunk) {
#ifdef SIMDGROUPS_MATRIX_64X128
  return row * 8 + (chunk ^ (row % 8));
#else
  return (row / 8 * 8 + chunk) * 8 + row % 8;
#endif
}

// [d0[0] .. d0[15]; d1[0] ..] += 16 rows of `left` times 128 rows of `right`, over the values of `chunk` and the next. Four
// simdgroups call it for 64 rows below each other. Where the device has this as one instruction it runs on its own:
// operands are published before the barrier in front of it, and d0 and d1 are nobody's between commit and wait.
#ifndef SIMDGROUPS_MATRIX_64X128
template <typename T>
METAL_FUNC void simdgroups_multiply_accumulate_64x128x16(
    thread simdgroup_matrix<float, 8, 8>* d0,
    thread simdgroup_matrix<float, 8, 8>* d1,
    const threadgroup uint4* left,
    const threadgroup uint4* right,
    int chunk,
    uint simdgroup) {
  const threadgroup T* a = (const threadgroup T*)(left + (int(simdgroup) % 4 * 16 + chunk) * 8);
  const threadgroup T* b = (const threadgroup T*)(right + chunk * 8);
  simdgroup_matrix<T, 8, 8> a00;
  simdgroup_matrix<T, 8, 8> a01;
  simdgroup_matrix<T, 8, 8> a10;
  simdgroup_matrix<T, 8, 8> a11;
  load_left(a00, a01, a10, a11, a, 8, 64, 512);
#pragma clang loop unroll(full)
  for (int j = 0; j < 16; j += 2) {
    simdgroup_matrix<T, 8, 8> b0;
    simdgroup_matrix<T, 8, 8> b1;
    simdgroup_matrix<T, 8, 8> c0;
    simdgroup_matrix<T, 8, 8> c1;
    load_right<true>(b0, b1, c0, c1, b + j * 512, 8, 64, 512);
    multiply_16x8x16<T>(d0[j], d1[j], a00, a01, a10, a11, b0, b1);
    multiply_16x8x16<T>(d0[j + 1], d1[j + 1], a00, a01, a10, a11, c0, c1);
  }
}

METAL_FUNC void simdgroups_multiply_begin() {}
METAL_FUNC void simdgroups_multiply_commit() {}
METAL_FUNC void simdgroups_multiply_publish() {}

template <int PENDING>
METAL_FUNC void simdgroups_multiply_wait() {}
#endif

// Copies from device to threadgroup memory that run on their own where the device can: done when no more than PENDING
// commits are outstanding, and then for the thread that asked.
#ifndef DEVICE_COPY_ASYNC
template <typename T>
METAL_FUNC void device_copy_async(threadgroup T* to, const device T* from) {
  *to = *from;
}

METAL_FUNC void device_copy_commit() {}

template <int PENDING>
METAL_FUNC void device_copy_wait() {}
#endif
