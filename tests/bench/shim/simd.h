// Barriers, simdgroup and quadgroup functions.
#pragma once

namespace metal {

enum class mem_flags : uint {
  mem_none = 0,
  mem_device = 1,
  mem_threadgroup = 2,
  mem_texture = 4,
  mem_threadgroup_imageblock = 8,
  mem_object_data = 16,
};
inline constexpr mem_flags operator|(mem_flags a, mem_flags b) { return (mem_flags)((uint)a | (uint)b); }

inline void threadgroup_barrier(mem_flags flags, MSL_LINE) { msl_threadgroup_barrier((uint)flags, line); }
inline void simdgroup_barrier(mem_flags flags, MSL_LINE) { msl_simdgroup_barrier((uint)flags, line); }

struct msl_add { template <class T> static T of(T a, T b) { return a + b; } };
struct msl_mul { template <class T> static T of(T a, T b) { return a * b; } };
struct msl_min { template <class T> static T of(T a, T b) { return metal::min(a, b); } };
struct msl_max { template <class T> static T of(T a, T b) { return metal::max(a, b); } };
struct msl_and { template <class T> static T of(T a, T b) { return a & b; } };
struct msl_or { template <class T> static T of(T a, T b) { return a | b; } };
struct msl_xor { template <class T> static T of(T a, T b) { return a ^ b; } };

template <class T>
inline T msl_slot(__generic msl_slots* s, uint lane) { return *(__generic T*)s->data[lane]; }

// Butterfly order over the active lanes of [first, first + count).
template <class Op, class T>
inline T msl_fold(__generic msl_slots* s, uint first, uint count) {
  T value[32];
  bool have[32];
  for (uint i = 0; i < count; i++) {
    have[i] = (s->active >> (first + i)) & 1;
    value[i] = msl_slot<T>(s, first + i);
  }
  for (uint step = count / 2; step > 0; step /= 2) {
    for (uint i = 0; i < step; i++) {
      if (have[i] && have[i + step]) value[i] = Op::of(value[i], value[i + step]);
      else if (have[i + step]) value[i] = value[i + step];
      have[i] = have[i] || have[i + step];
    }
  }
  return value[0];
}

template <class Op, class T>
inline T msl_reduce(msl_kind kind, uint line, T v) {
  __generic msl_slots* s = msl_exchange(kind, line, &v, sizeof(T));
  if (!s->has_result) {
    *(__generic T*)s->result = msl_fold<Op, T>(s, 0, 32);
    s->has_result = 1;
  }
  return *(__generic T*)s->result;
}

template <class Op, class T>
inline T msl_quad_reduce(uint line, T v) {
  __generic msl_slots* s = msl_exchange(msl_kind_quad, line, &v, sizeof(T));
  return msl_fold<Op, T>(s, msl_lane_index() & ~3u, 4);
}

template <class Op, class T>
inline T msl_prefix(uint line, T v, T identity, bool inclusive) {
  __generic msl_slots* s = msl_exchange(msl_kind_prefix, line, &v, sizeof(T));
  const uint lane = msl_lane_index();
  T total = identity;
  for (uint i = 0; i < lane + (inclusive ? 1 : 0); i++) {
    if ((s->active >> i) & 1) total = Op::of(total, msl_slot<T>(s, i));
  }
  return total;
}

template <class T>
inline T msl_read_lane(__generic msl_slots* s, uint kind, uint line, uint lane) {
  if (lane >= 32 || !((s->active >> lane) & 1)) msl_inactive_lane(kind, line, lane);
  return msl_slot<T>(s, lane);
}

template <class T>
inline T msl_shuffle(uint kind, uint line, T v, uint lane) {
  __generic msl_slots* s = msl_exchange(kind, line, &v, sizeof(T));
  return msl_read_lane<T>(s, kind, line, lane);
}

// The source lane is `from` when it lies in [first, first + count), else the lane keeps `otherwise`.
template <class T>
inline T msl_shift(uint kind, uint line, T v, int from, int first, int count, T otherwise) {
  __generic msl_slots* s = msl_exchange(kind, line, &v, sizeof(T));
  if (from < first || from >= first + count) return otherwise;
  return msl_read_lane<T>(s, kind, line, (uint)from);
}

#define MSL_SIMD_MOVES(T)                                                                                            \
  inline T simd_shuffle(T v, ushort lane, MSL_LINE) { return msl_shuffle(msl_kind_shuffle, line, v, lane); }         \
  inline T simd_shuffle_xor(T v, ushort mask, MSL_LINE) {                                                            \
    return msl_shuffle(msl_kind_shuffle, line, v, msl_lane_index() ^ mask);                                          \
  }                                                                                                                  \
  inline T simd_shuffle_up(T v, ushort delta, MSL_LINE) {                                                            \
    return msl_shift(msl_kind_shuffle, line, v, (int)msl_lane_index() - (int)delta, 0, 32, v);                       \
  }                                                                                                                  \
  inline T simd_shuffle_down(T v, ushort delta, MSL_LINE) {                                                          \
    return msl_shift(msl_kind_shuffle, line, v, (int)msl_lane_index() + (int)delta, 0, 32, v);                       \
  }                                                                                                                  \
  inline T simd_shuffle_rotate_up(T v, ushort delta, MSL_LINE) {                                                     \
    return msl_shuffle(msl_kind_shuffle, line, v, (msl_lane_index() + 32u - (delta & 31u)) & 31u);                   \
  }                                                                                                                  \
  inline T simd_shuffle_rotate_down(T v, ushort delta, MSL_LINE) {                                                   \
    return msl_shuffle(msl_kind_shuffle, line, v, (msl_lane_index() + delta) & 31u);                                 \
  }                                                                                                                  \
  inline T simd_shuffle_and_fill_up(T v, T fill, ushort delta, MSL_LINE) {                                           \
    T w = msl_shuffle(msl_kind_shuffle, line, fill, (msl_lane_index() + 32u - (delta & 31u)) & 31u);                 \
    return msl_shift(msl_kind_shuffle, line, v, (int)msl_lane_index() - (int)delta, 0, 32, w);                       \
  }                                                                                                                  \
  inline T simd_shuffle_and_fill_down(T v, T fill, ushort delta, MSL_LINE) {                                         \
    T w = msl_shuffle(msl_kind_shuffle, line, fill, (msl_lane_index() + delta) & 31u);                               \
    return msl_shift(msl_kind_shuffle, line, v, (int)msl_lane_index() + (int)delta, 0, 32, w);                       \
  }                                                                                                                  \
  inline T simd_broadcast(T v, ushort lane, MSL_LINE) { return msl_shuffle(msl_kind_broadcast, line, v, lane); }     \
  inline T simd_broadcast_first(T v, MSL_LINE) {                                                                     \
    __generic msl_slots* s = msl_exchange(msl_kind_broadcast, line, &v, sizeof(T));                                  \
    return msl_slot<T>(s, (uint)__builtin_ctz(s->active));                                                           \
  }                                                                                                                  \
  inline T quad_shuffle(T v, ushort lane, MSL_LINE) {                                                                \
    return msl_shuffle(msl_kind_quad, line, v, (msl_lane_index() & ~3u) | lane);                                     \
  }                                                                                                                  \
  inline T quad_broadcast(T v, ushort lane, MSL_LINE) {                                                              \
    return msl_shuffle(msl_kind_quad, line, v, (msl_lane_index() & ~3u) | lane);                                     \
  }                                                                                                                  \
  inline T quad_shuffle_xor(T v, ushort mask, MSL_LINE) {                                                            \
    return msl_shuffle(msl_kind_quad, line, v, msl_lane_index() ^ (mask & 3u));                                      \
  }                                                                                                                  \
  inline T quad_shuffle_up(T v, ushort delta, MSL_LINE) {                                                            \
    const int lane = (int)msl_lane_index();                                                                          \
    return msl_shift(msl_kind_quad, line, v, lane - (int)delta, lane & ~3, 4, v);                                    \
  }                                                                                                                  \
  inline T quad_shuffle_down(T v, ushort delta, MSL_LINE) {                                                          \
    const int lane = (int)msl_lane_index();                                                                          \
    return msl_shift(msl_kind_quad, line, v, lane + (int)delta, lane & ~3, 4, v);                                    \
  }

#define MSL_SIMD_ARITH(T)                                                                                            \
  inline T simd_sum(T v, MSL_LINE) { return msl_reduce<msl_add, T>(msl_kind_sum, line, v); }                         \
  inline T simd_product(T v, MSL_LINE) { return msl_reduce<msl_mul, T>(msl_kind_product, line, v); }                 \
  inline T simd_min(T v, MSL_LINE) { return msl_reduce<msl_min, T>(msl_kind_min, line, v); }                         \
  inline T simd_max(T v, MSL_LINE) { return msl_reduce<msl_max, T>(msl_kind_max, line, v); }                         \
  inline T simd_prefix_inclusive_sum(T v, MSL_LINE) { return msl_prefix<msl_add, T>(line, v, T(0), true); }          \
  inline T simd_prefix_exclusive_sum(T v, MSL_LINE) { return msl_prefix<msl_add, T>(line, v, T(0), false); }         \
  inline T simd_prefix_inclusive_product(T v, MSL_LINE) { return msl_prefix<msl_mul, T>(line, v, T(1), true); }      \
  inline T simd_prefix_exclusive_product(T v, MSL_LINE) { return msl_prefix<msl_mul, T>(line, v, T(1), false); }     \
  inline T quad_sum(T v, MSL_LINE) { return msl_quad_reduce<msl_add, T>(line, v); }                                  \
  inline T quad_product(T v, MSL_LINE) { return msl_quad_reduce<msl_mul, T>(line, v); }                              \
  inline T quad_min(T v, MSL_LINE) { return msl_quad_reduce<msl_min, T>(line, v); }                                  \
  inline T quad_max(T v, MSL_LINE) { return msl_quad_reduce<msl_max, T>(line, v); }

#define MSL_SIMD_BITS(T)                                                                                             \
  inline T simd_and(T v, MSL_LINE) { return msl_reduce<msl_and, T>(msl_kind_and, line, v); }                         \
  inline T simd_or(T v, MSL_LINE) { return msl_reduce<msl_or, T>(msl_kind_or, line, v); }                            \
  inline T simd_xor(T v, MSL_LINE) { return msl_reduce<msl_xor, T>(msl_kind_xor, line, v); }                         \
  inline T quad_and(T v, MSL_LINE) { return msl_quad_reduce<msl_and, T>(line, v); }                                  \
  inline T quad_or(T v, MSL_LINE) { return msl_quad_reduce<msl_or, T>(line, v); }                                    \
  inline T quad_xor(T v, MSL_LINE) { return msl_quad_reduce<msl_xor, T>(line, v); }

#define MSL_WIDTHS(M, T) M(T) M(T##2) M(T##3) M(T##4)
#define MSL_SIMD_FLOAT(T) MSL_SIMD_MOVES(T) MSL_SIMD_ARITH(T)
#define MSL_SIMD_INT(T) MSL_SIMD_MOVES(T) MSL_SIMD_ARITH(T) MSL_SIMD_BITS(T)
MSL_WIDTHS(MSL_SIMD_FLOAT, float)
MSL_WIDTHS(MSL_SIMD_FLOAT, half)
MSL_WIDTHS(MSL_SIMD_INT, int)
MSL_WIDTHS(MSL_SIMD_INT, uint)
MSL_WIDTHS(MSL_SIMD_INT, short)
MSL_WIDTHS(MSL_SIMD_INT, ushort)
MSL_WIDTHS(MSL_SIMD_INT, char)
MSL_WIDTHS(MSL_SIMD_INT, uchar)
MSL_SIMD_MOVES(bool)
#undef MSL_SIMD_FLOAT
#undef MSL_SIMD_INT
#undef MSL_SIMD_MOVES
#undef MSL_SIMD_ARITH
#undef MSL_SIMD_BITS

// Metal's simd functions take no bfloat: without these the argument would quietly become float or half.
#define MSL_NO_BFLOAT(F) bfloat F(bfloat) = delete;
MSL_NO_BFLOAT(simd_sum) MSL_NO_BFLOAT(simd_product) MSL_NO_BFLOAT(simd_min) MSL_NO_BFLOAT(simd_max)
MSL_NO_BFLOAT(simd_prefix_inclusive_sum) MSL_NO_BFLOAT(simd_prefix_exclusive_sum) MSL_NO_BFLOAT(simd_broadcast_first)
MSL_NO_BFLOAT(quad_sum) MSL_NO_BFLOAT(quad_min) MSL_NO_BFLOAT(quad_max)
#undef MSL_NO_BFLOAT
#define MSL_NO_BFLOAT(F) bfloat F(bfloat, ushort) = delete;
MSL_NO_BFLOAT(simd_shuffle) MSL_NO_BFLOAT(simd_shuffle_xor) MSL_NO_BFLOAT(simd_shuffle_up)
MSL_NO_BFLOAT(simd_shuffle_down) MSL_NO_BFLOAT(simd_broadcast) MSL_NO_BFLOAT(quad_shuffle_xor)
#undef MSL_NO_BFLOAT

struct simd_vote {
  typedef ulong vote_t;
  vote_t bits;
  explicit simd_vote(vote_t v) : bits(v) {}
  explicit operator vote_t() const { return bits; }
  bool all() const { return (bits & 0xffffffffUL) == 0xffffffffUL; }
  bool any() const { return bits != 0; }
};

inline uint msl_ballot(bool p, uint line) {
  uint v = p;
  __generic msl_slots* s = msl_exchange(msl_kind_vote, line, &v, sizeof(v));
  uint mask = 0;
  for (uint i = 0; i < 32; i++) mask |= (((s->active >> i) & 1) && msl_slot<uint>(s, i)) ? 1u << i : 0u;
  return mask;
}
inline simd_vote simd_ballot(bool p, MSL_LINE) { return simd_vote((ulong)msl_ballot(p, line)); }
inline simd_vote simd_active_threads_mask(MSL_LINE) { return simd_vote((ulong)msl_ballot(true, line)); }
inline bool simd_any(bool p, MSL_LINE) { return msl_ballot(p, line) != 0; }
inline bool simd_all(bool p, MSL_LINE) { return msl_ballot(!p, line) == 0; }
inline bool simd_is_first(MSL_LINE) { return (uint)__builtin_ctz(msl_ballot(true, line)) == msl_lane_index(); }

}  // namespace metal
