// Scalars, vectors, traits and limits. Address spaces are OpenCL's own, so misuse is a type error.
#pragma once
#pragma OPENCL EXTENSION cl_khr_fp16 : enable

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long int64_t;
typedef unsigned long uint64_t;
typedef __SIZE_TYPE__ size_t;
typedef __PTRDIFF_TYPE__ ptrdiff_t;
typedef __bf16 bfloat;
typedef bfloat bfloat16_t;
typedef half float16_t;

#define MSL_VECTORS(T)                                  \
  typedef T T##2 __attribute__((ext_vector_type(2)));   \
  typedef T T##3 __attribute__((ext_vector_type(3)));   \
  typedef T T##4 __attribute__((ext_vector_type(4)));
MSL_VECTORS(float)
MSL_VECTORS(half)
MSL_VECTORS(bfloat)
MSL_VECTORS(char)
MSL_VECTORS(uchar)
MSL_VECTORS(short)
MSL_VECTORS(ushort)
MSL_VECTORS(int)
MSL_VECTORS(uint)
MSL_VECTORS(long)
MSL_VECTORS(ulong)
#undef MSL_VECTORS

namespace metal {

template <class T, int N>
using vec = T __attribute__((ext_vector_type(N)));

template <class A, class B>
struct is_same { static constexpr bool value = false; };
template <class A>
struct is_same<A, A> { static constexpr bool value = true; };

template <bool C, class A, class B>
struct conditional { typedef A type; };
template <class A, class B>
struct conditional<false, A, B> { typedef B type; };
template <bool C, class A, class B>
using conditional_t = typename conditional<C, A, B>::type;

template <bool C, class T = void>
struct enable_if {};
template <class T>
struct enable_if<true, T> { typedef T type; };
template <bool C, class T = void>
using enable_if_t = typename enable_if<C, T>::type;

template <class T>
struct remove_const { typedef T type; };
template <class T>
struct remove_const<const T> { typedef T type; };
template <class T>
using remove_const_t = typename remove_const<T>::type;

template <class T>
struct is_floating_point {
  static constexpr bool value = is_same<T, float>::value || is_same<T, half>::value || is_same<T, bfloat>::value;
};
template <class T>
struct is_integral { static constexpr bool value = __is_integral(T); };
template <class T>
struct is_signed { static constexpr bool value = __is_signed(T); };
template <class T>
struct is_unsigned { static constexpr bool value = __is_unsigned(T); };

template <bool V>
struct bool_constant { static constexpr bool value = V; };
typedef bool_constant<true> true_type;
typedef bool_constant<false> false_type;
template <class T, T V>
struct integral_constant { static constexpr T value = V; };

template <class A, class B>
static constexpr __constant bool is_same_v = is_same<A, B>::value;
template <class T>
static constexpr __constant bool is_floating_point_v = is_floating_point<T>::value;
template <class T>
static constexpr __constant bool is_integral_v = is_integral<T>::value;

// Element type and width of a scalar or vector.
template <class V>
struct msl_shape { typedef V element; static constexpr int width = 1; };
template <class T>
struct msl_shape<vec<T, 2>> { typedef T element; static constexpr int width = 2; };
template <class T>
struct msl_shape<vec<T, 3>> { typedef T element; static constexpr int width = 3; };
template <class T>
struct msl_shape<vec<T, 4>> { typedef T element; static constexpr int width = 4; };

template <class V, class A>
inline void msl_append(__private V& out, __private int& at, A a) {
  typedef typename msl_shape<V>::element E;
  if constexpr (msl_shape<A>::width == 1) {
    out[at++] = (E)a;
  } else {
    for (int i = 0; i < msl_shape<A>::width; i++) out[at++] = (E)a[i];
  }
}

// Constructor of a vector: splat, conversion, or concatenation of exactly its width.
template <class V, class A, class... Rest>
inline V msl_build(A a, Rest... rest) {
  typedef typename msl_shape<V>::element E;
  constexpr int n = msl_shape<V>::width;
  if constexpr (sizeof...(Rest) == 0 && msl_shape<A>::width == 1) {
    return V((E)a);
  } else if constexpr (sizeof...(Rest) == 0) {
    static_assert(msl_shape<A>::width == n, "vector conversion needs the same number of components");
    return __builtin_convertvector(a, V);
  } else {
    static_assert((msl_shape<A>::width + ... + msl_shape<Rest>::width) == n,
                  "vector constructor needs exactly as many components as the vector has");
    V out;
    int at = 0;
    msl_append<V>(out, at, a);
    (msl_append<V>(out, at, rest), ...);
    return out;
  }
}

// static_cast that also converts between vector types of the same width.
template <class To>
struct msl_static_cast_to {
  template <class From>
  static To from(From a) {
    if constexpr (msl_shape<To>::width > 1 && msl_shape<From>::width > 1) {
      return __builtin_convertvector(a, To);
    } else {
      return static_cast<To>(a);
    }
  }
};
template <class To, class From>
inline To msl_static_cast(From a) { return msl_static_cast_to<To>::from(a); }

template <class To, class From>
inline To as_type(From from) {
  static_assert(sizeof(To) == sizeof(From), "as_type needs types of the same size");
  return __builtin_bit_cast(To, from);
}

template <class T>
struct numeric_limits;
#define MSL_FLOAT_LIMITS(T, LO, HI, EPS, INF, QNAN, DIGITS)          \
  template <>                                                         \
  struct numeric_limits<T> {                                          \
    static constexpr bool is_specialized = true;                      \
    static constexpr bool is_integer = false;                         \
    static constexpr bool is_signed = true;                           \
    static constexpr int digits = DIGITS;                             \
    static constexpr T min() { return LO; }                           \
    static constexpr T max() { return HI; }                           \
    static constexpr T lowest() { return -HI; }                       \
    static constexpr T epsilon() { return EPS; }                      \
    static constexpr T infinity() { return INF; }                     \
    static constexpr T quiet_NaN() { return QNAN; }                   \
  };
MSL_FLOAT_LIMITS(float, 1.17549435e-38f, 3.40282347e+38f, 1.19209290e-07f, __builtin_inff(), __builtin_nanf(""), 24)
MSL_FLOAT_LIMITS(half, 6.103515625e-05h, 65504.0h, 9.765625e-04h, (half)__builtin_inff(), (half)__builtin_nanf(""), 11)
MSL_FLOAT_LIMITS(bfloat, (bfloat)1.17549435e-38f, (bfloat)3.38953139e+38f, (bfloat)7.8125e-03f,
                 (bfloat)__builtin_inff(), (bfloat)__builtin_nanf(""), 8)
#undef MSL_FLOAT_LIMITS
#define MSL_INT_LIMITS(T, LO, HI)                                     \
  template <>                                                         \
  struct numeric_limits<T> {                                          \
    static constexpr bool is_specialized = true;                      \
    static constexpr bool is_integer = true;                          \
    static constexpr bool is_signed = __is_signed(T);                 \
    static constexpr int digits = sizeof(T) * 8 - __is_signed(T);     \
    static constexpr T min() { return LO; }                           \
    static constexpr T max() { return HI; }                           \
    static constexpr T lowest() { return LO; }                        \
  };
MSL_INT_LIMITS(char, -128, 127)
MSL_INT_LIMITS(uchar, 0, 255)
MSL_INT_LIMITS(short, -32768, 32767)
MSL_INT_LIMITS(ushort, 0, 65535)
MSL_INT_LIMITS(int, -2147483647 - 1, 2147483647)
MSL_INT_LIMITS(uint, 0, 4294967295u)
MSL_INT_LIMITS(long, -9223372036854775807L - 1, 9223372036854775807L)
MSL_INT_LIMITS(ulong, 0, 18446744073709551615UL)
#undef MSL_INT_LIMITS

// Vectors without padding, aligned like their element.
template <class T, int N>
struct packed_vec {
  T data[N];
  packed_vec() = default;
  packed_vec(vec<T, N> v) {
    for (int i = 0; i < N; i++) data[i] = v[i];
  }
  operator vec<T, N>() const {
    vec<T, N> v;
    for (int i = 0; i < N; i++) v[i] = data[i];
    return v;
  }
  operator vec<T, N>() const __constant {
    vec<T, N> v;
    for (int i = 0; i < N; i++) v[i] = data[i];
    return v;
  }
  T operator[](int i) const { return data[i]; }
  T operator[](int i) const __constant { return data[i]; }
};

template <class A>
inline A msl_plain(A a) { return a; }
template <class T, int N>
inline vec<T, N> msl_plain(packed_vec<T, N> a) { return (vec<T, N>)a; }
template <class V, class... A>
inline V msl_make(A... a) { return msl_build<V>(msl_plain(a)...); }
template <class V>
inline V msl_make() { return V(0); }

template <class T, size_t N>
struct array {
  T elems[N];
  __generic T& operator[](size_t i) { return elems[i]; }
  const __generic T& operator[](size_t i) const { return elems[i]; }
  static constexpr size_t size() { return N; }
};

}  // namespace metal

#define MSL_PACKED(T)                         \
  typedef metal::packed_vec<T, 2> packed_##T##2; \
  typedef metal::packed_vec<T, 3> packed_##T##3; \
  typedef metal::packed_vec<T, 4> packed_##T##4;
MSL_PACKED(float)
MSL_PACKED(half)
MSL_PACKED(bfloat)
MSL_PACKED(char)
MSL_PACKED(uchar)
MSL_PACKED(short)
MSL_PACKED(ushort)
MSL_PACKED(int)
MSL_PACKED(uint)
#undef MSL_PACKED
