// Metal Shading Language on CUDA: what the shaders of this folder use, no more.
//
// The text is compiled by NVRTC inside `namespace metal`, after the rewrites in mlx_gptoss/kernels/cuda_text.py
// (address spaces, attributes, swizzles). A simdgroup is a warp and a threadgroup is a block, so every simd_*
// call names all 32 lanes: calls must not diverge. simdgroup_matrix keeps NVIDIA's own lane layout (row = lane / 4,
// columns 2 (lane % 4) and the next), so 16-bit products are tensor-core instructions and float products are
// shuffles, never tf32. Matrix loads and stores want even row lengths and offsets.
#define MLX_GPTOSS_CUDA 1
#define MSL_FN __device__ __forceinline__
#define METAL_FUNC __device__ __forceinline__

namespace metal {

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef signed char int8_t;
typedef uchar uint8_t;
typedef short int16_t;
typedef ushort uint16_t;
typedef int int32_t;
typedef uint uint32_t;
typedef long int64_t;
typedef ulong uint64_t;
typedef ulong size_t;
typedef ulong uintptr_t;

template <typename T>
struct identity {
  typedef T type;
};
template <bool B, typename T, typename F>
struct conditional {
  typedef T type;
};
template <typename T, typename F>
struct conditional<false, T, F> {
  typedef F type;
};
template <bool B, typename T, typename F>
using conditional_t = typename conditional<B, T, F>::type;
template <typename A, typename B>
struct is_same {
  static constexpr bool value = false;
};
template <typename A>
struct is_same<A, A> {
  static constexpr bool value = true;
};
template <typename A, typename B>
constexpr bool is_same_v = is_same<A, B>::value;

// ---- 16-bit floats -------------------------------------------------------------------------------------------

struct alignas(2) bfloat {
  ushort bits;
  bfloat() = default;
  MSL_FN explicit bfloat(float f) { asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(f)); }
  template <typename U>
  MSL_FN explicit bfloat(U u) : bfloat(float(u)) {}
  MSL_FN operator float() const { return __uint_as_float(uint(bits) << 16); }
  MSL_FN bfloat& operator+=(float o) { return *this = bfloat(float(*this) + o); }
  MSL_FN bfloat& operator*=(float o) { return *this = bfloat(float(*this) * o); }
};
struct alignas(2) half {
  ushort bits;
  half() = default;
  MSL_FN explicit half(float f) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(f)); }
  template <typename U>
  MSL_FN explicit half(U u) : half(float(u)) {}
  MSL_FN operator float() const {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(bits));
    return f;
  }
  MSL_FN half& operator+=(float o) { return *this = half(float(*this) + o); }
  MSL_FN half& operator*=(float o) { return *this = half(float(*this) * o); }
};
typedef bfloat bfloat16_t;
typedef half float16_t;
typedef float float32_t;

#define MSL_SMALL_FLOAT(T)                                                     \
  MSL_FN T operator+(T a, T b) { return T(float(a) + float(b)); }              \
  MSL_FN T operator-(T a, T b) { return T(float(a) - float(b)); }              \
  MSL_FN T operator*(T a, T b) { return T(float(a) * float(b)); }              \
  MSL_FN T operator/(T a, T b) { return T(float(a) / float(b)); }              \
  MSL_FN T operator-(T a) { return T(-float(a)); }
MSL_SMALL_FLOAT(bfloat)
MSL_SMALL_FLOAT(half)

// ---- vectors ---------------------------------------------------------------------------------------------------

template <typename T, int N>
struct vec;

template <typename T>
struct alignas(2 * sizeof(T)) vec<T, 2> {
  T x, y;
  vec() = default;
  MSL_FN vec(T s) : x(s), y(s) {}
  MSL_FN vec(T a, T b) : x(a), y(b) {}
  template <typename U>
  MSL_FN explicit vec(vec<U, 2> o) : x(T(o.x)), y(T(o.y)) {}
  MSL_FN T& operator[](int i) { return (&x)[i]; }
  MSL_FN const T& operator[](int i) const { return (&x)[i]; }
  MSL_FN vec<T, 2> yx() const { return vec<T, 2>(y, x); }
};

template <typename T>
struct alignas(4 * sizeof(T)) vec<T, 3> {
  T x, y, z;
  vec() = default;
  MSL_FN vec(T s) : x(s), y(s), z(s) {}
  MSL_FN vec(T a, T b, T c) : x(a), y(b), z(c) {}
  MSL_FN vec(vec<T, 2> a, T c) : x(a.x), y(a.y), z(c) {}
  template <typename U>
  MSL_FN explicit vec(vec<U, 3> o) : x(T(o.x)), y(T(o.y)), z(T(o.z)) {}
  MSL_FN T& operator[](int i) { return (&x)[i]; }
  MSL_FN const T& operator[](int i) const { return (&x)[i]; }
  MSL_FN vec<T, 2> xy() const { return vec<T, 2>(x, y); }
  MSL_FN vec<T, 2> yz() const { return vec<T, 2>(y, z); }
};

template <typename T>
struct alignas(4 * sizeof(T)) vec<T, 4> {
  T x, y, z, w;
  vec() = default;
  MSL_FN vec(T s) : x(s), y(s), z(s), w(s) {}
  MSL_FN vec(T a, T b, T c, T d) : x(a), y(b), z(c), w(d) {}
  MSL_FN vec(vec<T, 2> a, vec<T, 2> b) : x(a.x), y(a.y), z(b.x), w(b.y) {}
  MSL_FN vec(vec<T, 2> a, T c, T d) : x(a.x), y(a.y), z(c), w(d) {}
  MSL_FN vec(vec<T, 3> a, T d) : x(a.x), y(a.y), z(a.z), w(d) {}
  template <typename U>
  MSL_FN explicit vec(vec<U, 4> o) : x(T(o.x)), y(T(o.y)), z(T(o.z)), w(T(o.w)) {}
  MSL_FN T& operator[](int i) { return (&x)[i]; }
  MSL_FN const T& operator[](int i) const { return (&x)[i]; }
  MSL_FN vec<T, 2> xy() const { return vec<T, 2>(x, y); }
  MSL_FN vec<T, 2> zw() const { return vec<T, 2>(z, w); }
  MSL_FN vec<T, 2> xz() const { return vec<T, 2>(x, z); }
  MSL_FN vec<T, 2> yw() const { return vec<T, 2>(y, w); }
  MSL_FN vec<T, 3> xyz() const { return vec<T, 3>(x, y, z); }
  MSL_FN vec<T, 3> yzw() const { return vec<T, 3>(y, z, w); }
};

#define MSL_VECTOR_NAMES(T, name)  \
  typedef vec<T, 2> name##2;       \
  typedef vec<T, 3> name##3;       \
  typedef vec<T, 4> name##4;
MSL_VECTOR_NAMES(float, float)
MSL_VECTOR_NAMES(half, half)
MSL_VECTOR_NAMES(bfloat, bfloat)
MSL_VECTOR_NAMES(int, int)
MSL_VECTOR_NAMES(uint, uint)
MSL_VECTOR_NAMES(short, short)
MSL_VECTOR_NAMES(ushort, ushort)
MSL_VECTOR_NAMES(char, char)
MSL_VECTOR_NAMES(uchar, uchar)
MSL_VECTOR_NAMES(long, long)
MSL_VECTOR_NAMES(ulong, ulong)
MSL_VECTOR_NAMES(bool, bool)

// Elementwise operators: vector-vector, vector-scalar and scalar-vector, R the element type of the result.
#define MSL_BINARY(op, R)                                                                                         \
  template <typename T>                                                                                           \
  MSL_FN vec<R, 2> operator op(vec<T, 2> a, vec<T, 2> b) {                                                        \
    return vec<R, 2>(R(a.x op b.x), R(a.y op b.y));                                                               \
  }                                                                                                               \
  template <typename T>                                                                                           \
  MSL_FN vec<R, 3> operator op(vec<T, 3> a, vec<T, 3> b) {                                                        \
    return vec<R, 3>(R(a.x op b.x), R(a.y op b.y), R(a.z op b.z));                                                \
  }                                                                                                               \
  template <typename T>                                                                                           \
  MSL_FN vec<R, 4> operator op(vec<T, 4> a, vec<T, 4> b) {                                                        \
    return vec<R, 4>(R(a.x op b.x), R(a.y op b.y), R(a.z op b.z), R(a.w op b.w));                                 \
  }                                                                                                               \
  template <typename T, int N>                                                                                    \
  MSL_FN vec<R, N> operator op(vec<T, N> a, typename identity<T>::type b) {                                       \
    return a op vec<T, N>(b);                                                                                     \
  }                                                                                                               \
  template <typename T, int N>                                                                                    \
  MSL_FN vec<R, N> operator op(typename identity<T>::type a, vec<T, N> b) {                                       \
    return vec<T, N>(a) op b;                                                                                     \
  }
#define MSL_ARITHMETIC(op)                                                        \
  MSL_BINARY(op, T)                                                               \
  template <typename T, int N>                                                    \
  MSL_FN vec<T, N>& operator op##=(vec<T, N>& a, vec<T, N> b) {                   \
    return a = a op b;                                                            \
  }                                                                               \
  template <typename T, int N>                                                    \
  MSL_FN vec<T, N>& operator op##=(vec<T, N>& a, typename identity<T>::type b) {  \
    return a = a op vec<T, N>(b);                                                 \
  }
MSL_ARITHMETIC(+)
MSL_ARITHMETIC(-)
MSL_ARITHMETIC(*)
MSL_ARITHMETIC(/)
MSL_ARITHMETIC(%)
MSL_ARITHMETIC(&)
MSL_ARITHMETIC(|)
MSL_ARITHMETIC(^)
MSL_ARITHMETIC(<<)
MSL_ARITHMETIC(>>)
MSL_BINARY(<, bool)
MSL_BINARY(>, bool)
MSL_BINARY(<=, bool)
MSL_BINARY(>=, bool)
MSL_BINARY(==, bool)
MSL_BINARY(!=, bool)
#define MSL_UNARY(op)                                                                                             \
  template <typename T>                                                                                           \
  MSL_FN vec<T, 2> operator op(vec<T, 2> a) {                                                                     \
    return vec<T, 2>(T(op a.x), T(op a.y));                                                                       \
  }                                                                                                               \
  template <typename T>                                                                                           \
  MSL_FN vec<T, 3> operator op(vec<T, 3> a) {                                                                     \
    return vec<T, 3>(T(op a.x), T(op a.y), T(op a.z));                                                            \
  }                                                                                                               \
  template <typename T>                                                                                           \
  MSL_FN vec<T, 4> operator op(vec<T, 4> a) {                                                                     \
    return vec<T, 4>(T(op a.x), T(op a.y), T(op a.z), T(op a.w));                                                 \
  }
MSL_UNARY(-)
MSL_UNARY(~)
MSL_UNARY(!)

template <typename To, typename From>
MSL_FN To as_type(From from) {
  static_assert(sizeof(To) == sizeof(From), "as_type between different sizes");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}
template <>
MSL_FN float as_type<float, uint>(uint u) { return __uint_as_float(u); }
template <>
MSL_FN uint as_type<uint, float>(float f) { return __float_as_uint(f); }
template <>
MSL_FN uint as_type<uint, vec<bfloat, 2>>(vec<bfloat, 2> v) { return uint(v.x.bits) | uint(v.y.bits) << 16; }
template <>
MSL_FN uint as_type<uint, vec<half, 2>>(vec<half, 2> v) { return uint(v.x.bits) | uint(v.y.bits) << 16; }
template <>
MSL_FN vec<bfloat, 2> as_type<vec<bfloat, 2>, uint>(uint u) {
  vec<bfloat, 2> v;
  v.x.bits = ushort(u);
  v.y.bits = ushort(u >> 16);
  return v;
}
template <>
MSL_FN vec<half, 2> as_type<vec<half, 2>, uint>(uint u) {
  vec<half, 2> v;
  v.x.bits = ushort(u);
  v.y.bits = ushort(u >> 16);
  return v;
}

// Past the first-level cache, in lines of 128 bytes from memory.
#define DEVICE_READ_ONCE 1
MSL_FN uint4 device_read_once(const uint4* p) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
  return v;
}

MSL_FN uint2 device_read_once(const uint2* p) {
  uint2 v;
  asm volatile("ld.global.L1::no_allocate.L2::128B.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(p));
  return v;
}

MSL_FN uint device_read_once(const uint* p) {
  uint v;
  asm volatile("ld.global.L1::no_allocate.L2::128B.u32 %0, [%1];" : "=r"(v) : "l"(p));
  return v;
}

#define DEVICE_AND_OR 1
MSL_FN uint device_and_or(uint a, uint b, uint c) {
  uint d;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

// Pairs of 16-bit floats convert and multiply in one instruction.
template <>
template <>
MSL_FN vec<bfloat, 2>::vec(vec<float, 2> f) {
  uint u;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(u) : "f"(f.y), "f"(f.x));
  *this = as_type<vec<bfloat, 2>>(u);
}
template <>
template <>
MSL_FN vec<half, 2>::vec(vec<float, 2> f) {
  uint u;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(u) : "f"(f.y), "f"(f.x));
  *this = as_type<vec<half, 2>>(u);
}
template <>
template <>
MSL_FN vec<bfloat, 4>::vec(vec<float, 4> f) : vec(vec<bfloat, 2>(f.xy()), vec<bfloat, 2>(f.zw())) {}
template <>
template <>
MSL_FN vec<half, 4>::vec(vec<float, 4> f) : vec(vec<half, 2>(f.xy()), vec<half, 2>(f.zw())) {}
MSL_FN vec<bfloat, 2> operator*(vec<bfloat, 2> a, vec<bfloat, 2> b) {
  uint u;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;"
      : "=r"(u) : "r"(as_type<uint>(a)), "r"(as_type<uint>(b)), "r"(0x80008000u));
  return as_type<vec<bfloat, 2>>(u);
}
MSL_FN vec<half, 2> operator-(vec<half, 2> a, vec<half, 2> b) {
  uint u;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(u) : "r"(as_type<uint>(a)), "r"(as_type<uint>(b)));
  return as_type<vec<half, 2>>(u);
}
MSL_FN vec<half, 2> operator*(vec<half, 2> a, vec<half, 2> b) {
  uint u;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(u) : "r"(as_type<uint>(a)), "r"(as_type<uint>(b)));
  return as_type<vec<half, 2>>(u);
}

// ---- arithmetic ------------------------------------------------------------------------------------------------

#define MSL_MATH(name, f)                                                                                         \
  MSL_FN float name(float a) { return f(a); }                                                                     \
  MSL_FN float2 name(float2 a) { return float2(f(a.x), f(a.y)); }                                                 \
  MSL_FN float3 name(float3 a) { return float3(f(a.x), f(a.y), f(a.z)); }                                         \
  MSL_FN float4 name(float4 a) { return float4(f(a.x), f(a.y), f(a.z), f(a.w)); }
#define MSL_MATH_NAMESPACE                                                                                        \
  MSL_MATH(sqrt, ::sqrtf) MSL_MATH(rsqrt, ::rsqrtf) MSL_MATH(log, ::logf) MSL_MATH(log2, ::log2f)                 \
  MSL_MATH(tanh, ::tanhf) MSL_MATH(floor, ::floorf) MSL_MATH(ceil, ::ceilf) MSL_MATH(trunc, ::truncf)             \
  MSL_MATH(round, ::roundf) MSL_MATH(rint, ::rintf) MSL_MATH(fabs, ::fabsf)                                       \
  MSL_FN float pow(float a, float b) { return ::powf(a, b); }                                                     \
  MSL_FN float divide(float a, float b) { return a / b; }
#define MSL_MATH_EXACT                                                                                            \
  MSL_MATH(exp, ::expf) MSL_MATH(exp2, ::exp2f) MSL_MATH(sin, ::sinf) MSL_MATH(cos, ::cosf)
MSL_MATH_NAMESPACE
MSL_MATH_EXACT
namespace precise {
MSL_MATH_NAMESPACE
MSL_MATH_EXACT
}  // namespace precise
namespace fast {
MSL_FN float exp2_approximate(float a) {
  float r;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(a));
  return r;
}
MSL_MATH_NAMESPACE
MSL_MATH(exp, ::__expf) MSL_MATH(exp2, exp2_approximate) MSL_MATH(sin, ::__sinf) MSL_MATH(cos, ::__cosf)
}  // namespace fast

MSL_FN float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
MSL_FN half2 fma(half2 a, half2 b, half2 c) {
  uint u;
  asm("fma.rn.f16x2 %0, %1, %2, %3;"
      : "=r"(u) : "r"(as_type<uint>(a)), "r"(as_type<uint>(b)), "r"(as_type<uint>(c)));
  return as_type<half2>(u);
}
MSL_FN float2 fma(float2 a, float2 b, float2 c) { return float2(fma(a.x, b.x, c.x), fma(a.y, b.y, c.y)); }
MSL_FN float4 fma(float4 a, float4 b, float4 c) {
  return float4(fma(a.x, b.x, c.x), fma(a.y, b.y, c.y), fma(a.z, b.z, c.z), fma(a.w, b.w, c.w));
}
MSL_FN bool isnan(float a) { return a != a; }
MSL_FN bool isinf(float a) { return ::fabsf(a) == __int_as_float(0x7f800000); }
MSL_FN bool isfinite(float a) { return ::fabsf(a) < __int_as_float(0x7f800000); }
MSL_FN uint popcount(uint a) { return __popc(a); }
MSL_FN uint clz(uint a) { return __clz(a); }
MSL_FN uint ctz(uint a) { return a ? __ffs(a) - 1 : 32; }
MSL_FN float max(float a, float b) { return ::fmaxf(a, b); }
MSL_FN float min(float a, float b) { return ::fminf(a, b); }
MSL_FN float abs(float a) { return ::fabsf(a); }
MSL_FN int abs(int a) { return a < 0 ? -a : a; }
template <typename T>
MSL_FN T max(T a, T b) { return a < b ? b : a; }
template <typename T>
MSL_FN T min(T a, T b) { return b < a ? b : a; }
template <typename T>
MSL_FN vec<T, 2> max(vec<T, 2> a, vec<T, 2> b) { return vec<T, 2>(max(a.x, b.x), max(a.y, b.y)); }
template <typename T>
MSL_FN vec<T, 2> min(vec<T, 2> a, vec<T, 2> b) { return vec<T, 2>(min(a.x, b.x), min(a.y, b.y)); }
template <typename T>
MSL_FN vec<T, 4> max(vec<T, 4> a, vec<T, 4> b) {
  return vec<T, 4>(max(a.x, b.x), max(a.y, b.y), max(a.z, b.z), max(a.w, b.w));
}
template <typename T>
MSL_FN vec<T, 4> min(vec<T, 4> a, vec<T, 4> b) {
  return vec<T, 4>(min(a.x, b.x), min(a.y, b.y), min(a.z, b.z), min(a.w, b.w));
}
template <typename T>
MSL_FN T clamp(T a, typename identity<T>::type lo, typename identity<T>::type hi) { return min(max(a, lo), hi); }
template <typename T>
MSL_FN T select(T a, typename identity<T>::type b, bool c) { return c ? b : a; }
MSL_FN float2 select(float2 a, float2 b, bool2 c) { return float2(c.x ? b.x : a.x, c.y ? b.y : a.y); }
MSL_FN float4 select(float4 a, float4 b, bool4 c) {
  return float4(c.x ? b.x : a.x, c.y ? b.y : a.y, c.z ? b.z : a.z, c.w ? b.w : a.w);
}
MSL_FN float dot(float2 a, float2 b) { return fma(a.x, b.x, a.y * b.y); }
MSL_FN float dot(float4 a, float4 b) { return fma(a.x, b.x, fma(a.y, b.y, fma(a.z, b.z, a.w * b.w))); }

}  // namespace metal

#define INFINITY __int_as_float(0x7f800000)
#define FLT_MAX 3.402823466e+38f
#define NAN __int_as_float(0x7fffffff)
