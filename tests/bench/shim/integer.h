// Integer and relational functions.
#pragma once

namespace metal {

#define MSL_INT_SCALAR(T, W)                                                                    \
  inline T min(T x, T y) { return x < y ? x : y; }                                              \
  inline T max(T x, T y) { return x > y ? x : y; }                                              \
  inline T clamp(T x, T lo, T hi) { return min(max(x, lo), hi); }                               \
  inline T min3(T x, T y, T z) { return min(x, min(y, z)); }                                    \
  inline T max3(T x, T y, T z) { return max(x, max(y, z)); }                                    \
  inline T median3(T x, T y, T z) { return max(min(x, y), min(max(x, y), z)); }                 \
  inline T mulhi(T x, T y) { return (T)(((W)x * (W)y) >> (8 * sizeof(T))); }                    \
  inline T madhi(T x, T y, T z) { return (T)(mulhi(x, y) + z); }                                \
  inline T hadd(T x, T y) { return (T)(((W)x + (W)y) >> 1); }                                   \
  inline T rhadd(T x, T y) { return (T)(((W)x + (W)y + 1) >> 1); }                              \
  inline T addsat(T x, T y) { T r; return __builtin_add_overflow(x, y, &r) ? (y < (T)0 ? numeric_limits<T>::min() : numeric_limits<T>::max()) : r; } \
  inline T subsat(T x, T y) { T r; return __builtin_sub_overflow(x, y, &r) ? (numeric_limits<T>::is_signed && y < (T)0 ? numeric_limits<T>::max() : numeric_limits<T>::min()) : r; }

#define MSL_INT_BITS(T, U)                                                                      \
  inline T popcount(T x) { return (T)__builtin_popcountg((U)x); }                               \
  inline T clz(T x) { return (T)__builtin_clzg((U)x, (int)(8 * sizeof(T))); }                   \
  inline T ctz(T x) { return (T)__builtin_ctzg((U)x, (int)(8 * sizeof(T))); }                   \
  inline T rotate(T x, T n) {                                                                   \
    const uint bits = 8 * sizeof(T), k = (uint)n & (bits - 1);                                  \
    return k == 0 ? x : (T)(((U)x << k) | ((U)x >> (bits - k)));                                \
  }                                                                                             \
  inline T reverse_bits(T x) {                                                                  \
    U r = 0;                                                                                    \
    for (uint i = 0; i < 8 * sizeof(T); i++) r = (U)((r << 1) | (((U)x >> i) & 1));             \
    return (T)r;                                                                                \
  }                                                                                             \
  inline T extract_bits(T x, uint offset, uint bits) {                                          \
    return bits == 0 ? (T)0 : (T)((T)((U)x << (8 * sizeof(T) - offset - bits)) >> (8 * sizeof(T) - bits)); \
  }                                                                                             \
  inline T insert_bits(T base, T insert, uint offset, uint bits) {                              \
    const U mask = (U)((bits >= 8 * sizeof(T) ? ~(U)0 : (U)(((U)1 << bits) - 1)) << offset);    \
    return (T)(((U)base & (U)~mask) | (((U)insert << offset) & mask));                          \
  }

#define MSL_INT_VECTOR(V, T)                                                                    \
  inline V min(V x, V y) { V r; for (int i = 0; i < msl_shape<V>::width; i++) r[i] = min((T)x[i], (T)y[i]); return r; } \
  inline V max(V x, V y) { V r; for (int i = 0; i < msl_shape<V>::width; i++) r[i] = max((T)x[i], (T)y[i]); return r; } \
  inline V clamp(V x, V lo, V hi) { return min(max(x, lo), hi); }                               \
  inline V min(V x, T y) { return min(x, V(y)); }                                               \
  inline V max(V x, T y) { return max(x, V(y)); }                                               \
  inline V clamp(V x, T lo, T hi) { return min(max(x, V(lo)), V(hi)); }                         \
  inline V popcount(V x) { V r; for (int i = 0; i < msl_shape<V>::width; i++) r[i] = popcount((T)x[i]); return r; } \
  inline V clz(V x) { V r; for (int i = 0; i < msl_shape<V>::width; i++) r[i] = clz((T)x[i]); return r; }

#define MSL_INT(T, U, W)                                                                        \
  MSL_INT_SCALAR(T, W) MSL_INT_BITS(T, U)                                                       \
  MSL_INT_VECTOR(T##2, T) MSL_INT_VECTOR(T##3, T) MSL_INT_VECTOR(T##4, T)
MSL_INT(char, uchar, int)
MSL_INT(uchar, uchar, int)
MSL_INT(short, ushort, int)
MSL_INT(ushort, ushort, int)
MSL_INT(int, uint, long)
MSL_INT(uint, uint, ulong)
MSL_INT(long, ulong, __int128)
MSL_INT(ulong, ulong, unsigned __int128)
#undef MSL_INT
#undef MSL_INT_VECTOR
#undef MSL_INT_BITS
#undef MSL_INT_SCALAR

#define MSL_ABS(T, U)                                                                           \
  inline T abs(T x) { return x < 0 ? (T)-x : x; }                                               \
  inline U absdiff(T x, T y) { return x > y ? (U)((U)x - (U)y) : (U)((U)y - (U)x); }            \
  inline T##2 abs(T##2 x) { return __builtin_elementwise_max(x, -x); }                          \
  inline T##3 abs(T##3 x) { return __builtin_elementwise_max(x, -x); }                          \
  inline T##4 abs(T##4 x) { return __builtin_elementwise_max(x, -x); }
MSL_ABS(char, uchar)
MSL_ABS(short, ushort)
MSL_ABS(int, uint)
MSL_ABS(long, ulong)
#undef MSL_ABS
inline uint abs(uint x) { return x; }
inline ushort abs(ushort x) { return x; }
inline uchar abs(uchar x) { return x; }
inline ulong abs(ulong x) { return x; }
inline uint absdiff(uint x, uint y) { return x > y ? x - y : y - x; }
inline int mul24(int x, int y) { return ((x << 8) >> 8) * ((y << 8) >> 8); }
inline uint mul24(uint x, uint y) { return (x & 0xffffffu) * (y & 0xffffffu); }
inline int mad24(int x, int y, int z) { return mul24(x, y) + z; }
inline uint mad24(uint x, uint y, uint z) { return mul24(x, y) + z; }

// Comparisons of vectors give integer vectors here and bool vectors in Metal: consume them with these only.
template <class T> inline bool any(vec<T, 2> v) { return v[0] || v[1]; }
template <class T> inline bool any(vec<T, 3> v) { return v[0] || v[1] || v[2]; }
template <class T> inline bool any(vec<T, 4> v) { return v[0] || v[1] || v[2] || v[3]; }
template <class T> inline bool all(vec<T, 2> v) { return v[0] && v[1]; }
template <class T> inline bool all(vec<T, 3> v) { return v[0] && v[1] && v[2]; }
template <class T> inline bool all(vec<T, 4> v) { return v[0] && v[1] && v[2] && v[3]; }
inline bool any(bool v) { return v; }
inline bool all(bool v) { return v; }

#define MSL_SELECT(T)                                                                            \
  inline T select(T a, T b, bool c) { return c ? b : a; }                                       \
  template <class C> inline T##2 select(T##2 a, T##2 b, vec<C, 2> c) { return {c[0] ? b[0] : a[0], c[1] ? b[1] : a[1]}; } \
  template <class C> inline T##3 select(T##3 a, T##3 b, vec<C, 3> c) { T##3 r; for (int i = 0; i < 3; i++) r[i] = c[i] ? b[i] : a[i]; return r; } \
  template <class C> inline T##4 select(T##4 a, T##4 b, vec<C, 4> c) { T##4 r; for (int i = 0; i < 4; i++) r[i] = c[i] ? b[i] : a[i]; return r; }
MSL_SELECT(float)
MSL_SELECT(half)
MSL_SELECT(bfloat)
MSL_SELECT(char)
MSL_SELECT(uchar)
MSL_SELECT(short)
MSL_SELECT(ushort)
MSL_SELECT(int)
MSL_SELECT(uint)
MSL_SELECT(long)
MSL_SELECT(ulong)
#undef MSL_SELECT

}  // namespace metal
