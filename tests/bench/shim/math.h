// Floating-point functions. Half goes through float and is rounded once; vectors go component by component.
#pragma once

namespace metal {

// Scalar definitions in float; `precise` and `fast` have float only, as in Metal.
#define MSL_F1(NAME, EXPR) inline float msl_##NAME(float x) { return EXPR; }
MSL_F1(sqrt, __builtin_sqrtf(x))
MSL_F1(rsqrt, 1.0f / __builtin_sqrtf(x))
MSL_F1(exp, __builtin_expf(x))
MSL_F1(exp2, __builtin_exp2f(x))
MSL_F1(exp10, __builtin_powf(10.0f, x))
MSL_F1(log, __builtin_logf(x))
MSL_F1(log2, __builtin_log2f(x))
MSL_F1(log10, __builtin_log10f(x))
MSL_F1(sin, __builtin_sinf(x))
MSL_F1(cos, __builtin_cosf(x))
MSL_F1(tan, __builtin_tanf(x))
MSL_F1(asin, __builtin_asinf(x))
MSL_F1(acos, __builtin_acosf(x))
MSL_F1(atan, __builtin_atanf(x))
MSL_F1(sinh, __builtin_sinhf(x))
MSL_F1(cosh, __builtin_coshf(x))
MSL_F1(tanh, __builtin_tanhf(x))
MSL_F1(asinh, __builtin_asinhf(x))
MSL_F1(acosh, __builtin_acoshf(x))
MSL_F1(atanh, __builtin_atanhf(x))
MSL_F1(floor, __builtin_floorf(x))
MSL_F1(ceil, __builtin_ceilf(x))
MSL_F1(round, __builtin_roundf(x))
MSL_F1(rint, __builtin_rintf(x))
MSL_F1(trunc, __builtin_truncf(x))
MSL_F1(fabs, __builtin_fabsf(x))
MSL_F1(fract, __builtin_fminf(x - __builtin_floorf(x), 0x1.fffffep-1f))
MSL_F1(sign, x > 0.0f ? 1.0f : (x < 0.0f ? -1.0f : (x == 0.0f ? x : 0.0f)))
MSL_F1(saturate, __builtin_fminf(__builtin_fmaxf(x, 0.0f), 1.0f))
#undef MSL_F1
#define MSL_F2(NAME, EXPR) inline float msl_##NAME(float x, float y) { return EXPR; }
MSL_F2(fmin, __builtin_fminf(x, y))
MSL_F2(fmax, __builtin_fmaxf(x, y))
MSL_F2(pow, __builtin_powf(x, y))
MSL_F2(powr, __builtin_powf(x, y))
MSL_F2(fmod, __builtin_fmodf(x, y))
MSL_F2(atan2, __builtin_atan2f(x, y))
MSL_F2(copysign, __builtin_copysignf(x, y))
MSL_F2(fdim, __builtin_fdimf(x, y))
MSL_F2(step, y < x ? 0.0f : 1.0f)
MSL_F2(divide, x / y)
#undef MSL_F2
#define MSL_F3(NAME, EXPR) inline float msl_##NAME(float x, float y, float z) { return EXPR; }
MSL_F3(fma, __builtin_fmaf(x, y, z))
MSL_F3(mix, x + (y - x) * z)
MSL_F3(fclamp, __builtin_fminf(__builtin_fmaxf(x, y), z))
MSL_F3(fmedian3, __builtin_fmaxf(__builtin_fminf(x, y), __builtin_fminf(__builtin_fmaxf(x, y), z)))
MSL_F3(fmin3, __builtin_fminf(x, __builtin_fminf(y, z)))
MSL_F3(fmax3, __builtin_fmaxf(x, __builtin_fmaxf(y, z)))
#undef MSL_F3
inline float msl_smoothstep(float a, float b, float x) {
  const float t = msl_saturate((x - a) / (b - a));
  return t * t * (3.0f - 2.0f * t);
}

#define MSL_VEC1(NAME, IMPL, V)                                                          \
  inline V NAME(V x) {                                                                   \
    V r;                                                                                 \
    for (int i = 0; i < msl_shape<V>::width; i++) r[i] = (msl_shape<V>::element)IMPL((float)x[i]); \
    return r;                                                                            \
  }
#define MSL_VEC2(NAME, IMPL, V)                                                          \
  inline V NAME(V x, V y) {                                                              \
    V r;                                                                                 \
    for (int i = 0; i < msl_shape<V>::width; i++) r[i] = (msl_shape<V>::element)IMPL((float)x[i], (float)y[i]); \
    return r;                                                                            \
  }
#define MSL_VEC3(NAME, IMPL, V)                                                          \
  inline V NAME(V x, V y, V z) {                                                         \
    V r;                                                                                 \
    for (int i = 0; i < msl_shape<V>::width; i++)                                        \
      r[i] = (msl_shape<V>::element)IMPL((float)x[i], (float)y[i], (float)z[i]);         \
    return r;                                                                            \
  }
#define MSL_ALL1(NAME, IMPL, T)                                        \
  inline T NAME(T x) { return (T)IMPL((float)x); }                     \
  MSL_VEC1(NAME, IMPL, T##2) MSL_VEC1(NAME, IMPL, T##3) MSL_VEC1(NAME, IMPL, T##4)
#define MSL_ALL2(NAME, IMPL, T)                                        \
  inline T NAME(T x, T y) { return (T)IMPL((float)x, (float)y); }      \
  MSL_VEC2(NAME, IMPL, T##2) MSL_VEC2(NAME, IMPL, T##3) MSL_VEC2(NAME, IMPL, T##4)
#define MSL_ALL3(NAME, IMPL, T)                                        \
  inline T NAME(T x, T y, T z) { return (T)IMPL((float)x, (float)y, (float)z); } \
  MSL_VEC3(NAME, IMPL, T##2) MSL_VEC3(NAME, IMPL, T##3) MSL_VEC3(NAME, IMPL, T##4)

#define MSL_MATH_OF(T)                                                                                     \
  MSL_ALL1(sqrt, msl_sqrt, T) MSL_ALL1(rsqrt, msl_rsqrt, T) MSL_ALL1(exp, msl_exp, T)                      \
  MSL_ALL1(exp2, msl_exp2, T) MSL_ALL1(exp10, msl_exp10, T) MSL_ALL1(log, msl_log, T)                      \
  MSL_ALL1(log2, msl_log2, T) MSL_ALL1(log10, msl_log10, T) MSL_ALL1(sin, msl_sin, T)                      \
  MSL_ALL1(cos, msl_cos, T) MSL_ALL1(tan, msl_tan, T) MSL_ALL1(asin, msl_asin, T)                          \
  MSL_ALL1(acos, msl_acos, T) MSL_ALL1(atan, msl_atan, T) MSL_ALL1(sinh, msl_sinh, T)                      \
  MSL_ALL1(cosh, msl_cosh, T) MSL_ALL1(tanh, msl_tanh, T) MSL_ALL1(asinh, msl_asinh, T)                    \
  MSL_ALL1(acosh, msl_acosh, T) MSL_ALL1(atanh, msl_atanh, T) MSL_ALL1(floor, msl_floor, T)                \
  MSL_ALL1(ceil, msl_ceil, T) MSL_ALL1(round, msl_round, T) MSL_ALL1(rint, msl_rint, T)                    \
  MSL_ALL1(trunc, msl_trunc, T) MSL_ALL1(fabs, msl_fabs, T) MSL_ALL1(abs, msl_fabs, T)                     \
  MSL_ALL1(fract, msl_fract, T) MSL_ALL1(sign, msl_sign, T) MSL_ALL1(saturate, msl_saturate, T)            \
  MSL_ALL2(fmin, msl_fmin, T) MSL_ALL2(fmax, msl_fmax, T) MSL_ALL2(min, msl_fmin, T)                       \
  MSL_ALL2(max, msl_fmax, T) MSL_ALL2(pow, msl_pow, T) MSL_ALL2(powr, msl_powr, T)                         \
  MSL_ALL2(fmod, msl_fmod, T) MSL_ALL2(atan2, msl_atan2, T) MSL_ALL2(copysign, msl_copysign, T)            \
  MSL_ALL2(fdim, msl_fdim, T) MSL_ALL2(step, msl_step, T) MSL_ALL2(divide, msl_divide, T)                  \
  MSL_ALL3(fma, msl_fma, T) MSL_ALL3(mix, msl_mix, T) MSL_ALL3(clamp, msl_fclamp, T)                       \
  MSL_ALL3(smoothstep, msl_smoothstep, T) MSL_ALL3(median3, msl_fmedian3, T)                               \
  MSL_ALL3(min3, msl_fmin3, T) MSL_ALL3(max3, msl_fmax3, T)

MSL_MATH_OF(float)
MSL_MATH_OF(half)
namespace precise { MSL_MATH_OF(float) }
namespace fast { MSL_MATH_OF(float) }
#undef MSL_MATH_OF

// Metal mixes a vector with a scalar weight, and bounds a vector by scalars.
#define MSL_SCALAR_TAIL(V, T)                                                        \
  inline V mix(V x, V y, T a) { return mix(x, y, V(a)); }                            \
  inline V clamp(V x, T lo, T hi) { return clamp(x, V(lo), V(hi)); }                 \
  inline V min(V x, T y) { return min(x, V(y)); }                                    \
  inline V max(V x, T y) { return max(x, V(y)); }
#define MSL_SCALAR_TAILS(T) MSL_SCALAR_TAIL(T##2, T) MSL_SCALAR_TAIL(T##3, T) MSL_SCALAR_TAIL(T##4, T)
MSL_SCALAR_TAILS(float)
MSL_SCALAR_TAILS(half)
#undef MSL_SCALAR_TAILS
#undef MSL_SCALAR_TAIL

#define MSL_CLASSIFY(T)                                                              \
  inline bool isnan(T x) { return (float)x != (float)x; }                            \
  inline bool isinf(T x) { return __builtin_isinf((float)x); }                       \
  inline bool isfinite(T x) { return __builtin_isfinite((float)x); }                 \
  inline bool signbit(T x) { return __builtin_signbit((float)x); }                   \
  inline T ldexp(T x, int e) { return (T)__builtin_ldexpf((float)x, e); }            \
  inline int ilogb(T x) { return __builtin_ilogbf((float)x); }                       \
  inline T frexp(T x, __private int& e) { int k; T r = (T)__builtin_frexpf((float)x, &k); e = k; return r; } \
  inline T modf(T x, __private T& whole) { whole = trunc(x); return x - whole; }     \
  inline T sincos(T x, __private T& c) { c = cos(x); return sin(x); }
MSL_CLASSIFY(float)
MSL_CLASSIFY(half)
#undef MSL_CLASSIFY
namespace precise { inline float sincos(float x, __private float& c) { c = cos(x); return sin(x); } }
namespace fast { inline float sincos(float x, __private float& c) { c = cos(x); return sin(x); } }

#define MSL_GEOMETRY(V, T)                                                           \
  inline T dot(V a, V b) {                                                           \
    T r = a[0] * b[0];                                                               \
    for (int i = 1; i < msl_shape<V>::width; i++) r += a[i] * b[i];                  \
    return r;                                                                        \
  }                                                                                  \
  inline T length_squared(V a) { return dot(a, a); }                                 \
  inline T length(V a) { return sqrt(dot(a, a)); }                                   \
  inline T distance(V a, V b) { return length(a - b); }                              \
  inline V normalize(V a) { return a * rsqrt(dot(a, a)); }
#define MSL_GEOMETRIES(T) MSL_GEOMETRY(T##2, T) MSL_GEOMETRY(T##3, T) MSL_GEOMETRY(T##4, T)
MSL_GEOMETRIES(float)
MSL_GEOMETRIES(half)
#undef MSL_GEOMETRIES
#undef MSL_GEOMETRY
inline float3 cross(float3 a, float3 b) { return a.yzx * b.zxy - a.zxy * b.yzx; }

// Metal's math functions take no bfloat: an exact call would be ambiguous or silently another type's.
#define MSL_NO_BFLOAT(F) bfloat F(bfloat) = delete;
MSL_NO_BFLOAT(sqrt) MSL_NO_BFLOAT(rsqrt) MSL_NO_BFLOAT(exp) MSL_NO_BFLOAT(exp2) MSL_NO_BFLOAT(log)
MSL_NO_BFLOAT(log2) MSL_NO_BFLOAT(sin) MSL_NO_BFLOAT(cos) MSL_NO_BFLOAT(tanh) MSL_NO_BFLOAT(abs)
MSL_NO_BFLOAT(fabs) MSL_NO_BFLOAT(floor) MSL_NO_BFLOAT(ceil) MSL_NO_BFLOAT(round) MSL_NO_BFLOAT(rint)
MSL_NO_BFLOAT(trunc) MSL_NO_BFLOAT(isnan) MSL_NO_BFLOAT(isinf) MSL_NO_BFLOAT(isfinite)
#undef MSL_NO_BFLOAT
#define MSL_NO_BFLOAT(F) bfloat F(bfloat, bfloat) = delete;
MSL_NO_BFLOAT(min) MSL_NO_BFLOAT(max) MSL_NO_BFLOAT(fmin) MSL_NO_BFLOAT(fmax) MSL_NO_BFLOAT(pow)
#undef MSL_NO_BFLOAT
bfloat fma(bfloat, bfloat, bfloat) = delete;
bfloat clamp(bfloat, bfloat, bfloat) = delete;

}  // namespace metal
