// What the executor offers to a running lane. All of it is convergent: clang assumes so for OpenCL.
#pragma once

// Values that the lanes of one simdgroup hand to each other at one synchronisation.
struct msl_slots {
  alignas(16) uchar data[32][64];  // of any vector up to 16 bytes
  uchar result[64];
  uint active;
  uint has_result;
};

extern "C" {
__generic msl_slots* msl_exchange(uint kind, uint line, const void* value, uint size);
uint msl_lane_index();
void msl_threadgroup_barrier(uint flags, uint line);
void msl_simdgroup_barrier(uint flags, uint line);
void msl_inactive_lane(uint kind, uint line, uint lane);
void msl_atomic(uint begin);
__local void* msl_threadgroup_array(uint slot, ulong size, ulong align);
}

// Names are in the same order in the runtime.
enum msl_kind : uint {
  msl_kind_sum, msl_kind_product, msl_kind_min, msl_kind_max, msl_kind_and, msl_kind_or, msl_kind_xor,
  msl_kind_prefix, msl_kind_shuffle, msl_kind_broadcast, msl_kind_vote, msl_kind_matrix, msl_kind_quad,
  msl_kind_matrix_memory,
};

// The line of the caller, which no caller can pass by accident.
struct msl_line {
  uint value;
  explicit constexpr msl_line(uint v) : value(v) {}
  operator uint() const { return value; }
};
#define MSL_LINE msl_line line = msl_line(__builtin_LINE())
