// Legal programs. Each begins with "//// name"; the prologue of the tests comes first.

//// kernel
[[kernel]] void k(device float* o [[buffer(0)]], uint i [[thread_position_in_grid]]) { o[i] = 1.0f; }

//// kernel_keyword
kernel void k(device float* o [[buffer(0)]], uint i [[thread_position_in_grid]]) { o[i] = 1.0f; }

//// ushort_builtins
[[kernel]] void k(device float* o [[buffer(0)]], ushort2 p [[thread_position_in_threadgroup]],
    ushort l [[thread_index_in_simdgroup]]) { o[p.x] = l; }

//// constant_reference
struct Args { uint n; float scale; };
[[kernel]] void k(constant Args& args [[buffer(0)]], device float* o [[buffer(1)]],
    uint i [[thread_position_in_grid]]) { if (i < args.n) o[i] = args.scale; }

//// threadgroup_array
[[kernel]] void k(device float* o [[buffer(0)]], uint i [[thread_index_in_threadgroup]]) {
  threadgroup float part[32];
  threadgroup float4 wide[8][2];
  part[i] = 1;
  wide[i / 4][0] = float4(1.0f);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  o[i] = part[31 - i] + wide[0][0].x; }

//// threadgroup_scalar
[[kernel]] void k(device uint* o [[buffer(0)]], uint i [[thread_index_in_threadgroup]]) {
  threadgroup atomic_uint count;
  if (i == 0) atomic_store_explicit(&count, 0u, memory_order_relaxed);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  atomic_fetch_add_explicit(&count, 1u, memory_order_relaxed);
  threadgroup_barrier(mem_flags::mem_threadgroup | mem_flags::mem_device);
  o[i] = atomic_load_explicit(&count, memory_order_relaxed); }

//// template_kernel
template <typename T, int N>
[[kernel]] void k(const device T* x [[buffer(0)]], device T* o [[buffer(1)]],
    uint i [[thread_position_in_grid]]) { threadgroup T part[N]; part[i] = x[i]; o[i] = part[i]; }
template [[host_name("k_half")]] [[kernel]] decltype(k<half, 32>) k<half, 32>;

//// address_space_overloads
float f(device const float* p) { return p[0]; }
float f(threadgroup const float* p) { return p[1]; }
float f(constant float* p) { return p[2]; }
float f(thread const float* p) { return p[3]; }

//// template_pointer
template <typename P> float first(P p) { return float(p[0]); }
float f(device half* p) { return first(p); }

//// thread_reference
void set(thread float& x) { x = 1.0f; }
float f() { float y = 0; set(y); return y; }

//// thread_array
float f() { float a[4] = {1, 2, 3, 4}; thread float* p = a; return p[2]; }

//// array_reference
float sum(thread float (&a)[3]) { return a[0] + a[1] + a[2]; }
float f() { float a[3] = {1, 2, 3}; return sum(a); }

//// nullptr
bool f(device float* p) { return p == nullptr; }

//// constant_table
constant float table[4] = {0.0f, 0.5f, 1.0f, 1.5f};
float f(uint i) { return table[i & 3]; }

//// constexpr_constant
constexpr constant int N = 8;
constant constexpr float S = 0.5f;
float f() { float a[N] = {}; return a[0] * S; }

//// static_constexpr_member
struct Shape { static constexpr constant int rows = 4; };
int f() { return Shape::rows; }

//// enum
enum Mode { fast_mode = 1, exact_mode = 2 };
enum class Kind : uchar { a, b };
int f() { return exact_mode + int(Kind::b); }

//// qualified_methods
struct Block { uchar bits[16]; half scale; float value(int i) const device { return float(scale) * bits[i]; }
  float value(int i) const thread { return float(scale) * bits[i]; } };
float f(device Block* b) { Block mine = b[0]; return b->value(0) + mine.value(1); }

//// thread_methods
struct Sum { float s = 0; void add(float x) thread { s += x; } };
float f() { Sum a; a.add(2.0f); return a.s; }

//// operators
struct Pair { float a, b; };
Pair operator+(Pair x, Pair y) { return Pair{x.a + y.a, x.b + y.b}; }
float f() { Pair p = Pair{1, 2} + Pair{3, 4}; return p.a; }

//// struct_copy_from_device
struct P { float a; uint b; };
P f(device P* p, uint i) { P mine = p[i]; return mine; }

//// struct_in_threadgroup
struct P { float a; uint b; };
[[kernel]] void k(device P* p [[buffer(0)]], uint i [[thread_index_in_threadgroup]]) { threadgroup P t[32];
    t[i] = p[i]; p[i] = t[i]; }

//// if_constexpr
template <bool B> int g() { if constexpr (B) { return 1; } else { return 2; } }
int f() { return g<true>() + g<false>(); }

//// type_traits
template <typename T> float g(T x) { if (is_same_v<T, half>) return 1.0f; return float(x); }
float f(half x) { return g(x) + conditional_t<true, float, int>(1); }

//// static_assert
template <int N> int g() { static_assert(N % 8 == 0, "a multiple of eight"); return N; }
int f() { return g<16>(); }

//// variadic_template
template <typename... T> float sum(T... x) { return (0.0f + ... + float(x)); }
float f() { return sum(1.0f, 2, 3u); }

//// default_argument
float g(float x, float y = 2.0f) { return x * y; }
float f() { return g(1.0f); }

//// using_alias
template <typename T> using four = vec<T, 4>;
float f() { four<float> v = four<float>(1.0f); return v.w; }

//// namespace
namespace ours { inline float g(float x) { return x; } }
float f() { return ours::g(1.0f); }

//// vector_constructors
float4 f(float2 a, float3 b) { return float4(a, a) + float4(b, 1.0f) + float4(1.0f, b) + float4(a.x, a,
    1.0f) + float4(2.0f); }

//// vector_conversions
float4 f(half4 h, uint4 u, uchar4 c) { return float4(h) + float4(u) + float4(c) + static_cast<float4>(h); }

//// swizzles
float4 f(float4 a) { a.xy = a.zw; a.w = a.r; return a.wzyx + a.xxyy + float4(a.rgb, a.a); }

//// vector_index
float f(float4 a) { float s = 0; for (int i = 0; i < 4; i++) s += a[i]; a[2] = s; return a.z; }

//// vector_arithmetic
float4 f(float4 a, float b) { a *= b; a += a * 2.0f - b / a; return -a; }

//// integer_vectors
uint4 f(uint4 a) { a = (a >> 4u) & 0x0f0f0f0fu; return a | (a << uint4(1, 2, 3, 4)); }

//// any_all_select
float4 f(float4 a, float4 b) { if (any(a < b) && !all(a == b)) return select(a, b, a > b);
    return select(a, b, b >= a); }

//// as_type
float f(uint x) { half2 h = as_type<half2>(x);
    return as_type<float>(as_type<uint>(h)) + float(as_type<ushort>(h.x)); }

//// bfloat_explicit
bfloat f(float x) { bfloat b = bfloat(x); return b * b + bfloat(1.0f); }
float g(bfloat x) { float y = x; return y + x; }

//// bfloat_vectors
float4 f(device bfloat4* p) { bfloat4 v = p[0]; return float4(v); }
bfloat4 g(float4 x) { return bfloat4(x); }

//// bfloat16_t
float f(device bfloat16_t* p) { bfloat16_t x = p[0]; return float(x); }

//// half_literals
half f(half x) { return x * 0.5h + half(1.0f); }

//// float_to_half
void f(device half* p, float x) { p[0] = x; half h = x; p[1] = h; }

//// packed_vectors
float3 f(device packed_float3* p) { p[1] = packed_float3(float3(1.0f)); return float3(p[0]) + float3(p[1]); }

//// math
float f(float x) { return exp(x) + metal::exp2(x) + precise::cos(x) + fast::sin(x) + rsqrt(x) + fma(x, x,
    1.0f) + pow(x, 2.0f) + tanh(x) + clamp(x, 0.0f, 1.0f) + mix(x, 1.0f, 0.5f); }

//// vector_math
float4 f(float4 x) { return exp(x) + max(x, 0.0f) + clamp(x, float4(0.0f), float4(1.0f)) + float4(dot(x,
    x)) + fma(x, x, x); }

//// half_math
half f(half x) { return exp(x) + max(x, 1.0h) + sqrt(x); }

//// integer_functions
uint f(uint x) { return popcount(x) + clz(x) + ctz(x) + mulhi(x, 3u) + rotate(x, 5u) + min(x,
    2u) + extract_bits(x, 4u, 8u) + reverse_bits(x); }

//// sincos
float f(float x) { float c; float s = sincos(x, c); return s * c; }

//// numeric_limits
float f() {
    return numeric_limits<float>::max() + float(numeric_limits<half>::infinity()) + INFINITY + FLT_MAX + M_PI_F; }

//// simd
float f(float x, ushort l) { return simd_sum(x) + simd_max(x) + simd_shuffle(x, l) + simd_shuffle_xor(x,
    1) + simd_broadcast(x, 0) + simd_prefix_exclusive_sum(x); }

//// simd_vectors
float4 f(float4 x) { return simd_sum(x) + simd_shuffle_down(x, 4); }

//// simd_votes
bool f(bool p) { simd_vote v = simd_ballot(p); return simd_any(p) || v.all() || (simd_vote::vote_t(v) & 1); }

//// simdgroup_matrix
void f(device half* a, threadgroup float* b) { simdgroup_half8x8 x;
    simdgroup_float8x8 y(0.0f), z = simdgroup_float8x8(0);
  simdgroup_load(x, a, 8); simdgroup_load(y, b, 8, ulong2(0, 8), true);
    simdgroup_multiply_accumulate(z, x, y, z);
  z.thread_elements()[0] += 1.0f; simdgroup_store(z, b, 8); }

//// matrix_array
void f(device float* a) { simdgroup_matrix<float, 8, 8> c[2][4]; for (int i = 0; i < 2;
    i++) for (int j = 0; j < 4; j++) c[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    simdgroup_store(c[1][2], a, 8); }

//// atomics
void f(device atomic_uint* u, device atomic<float>* x, threadgroup atomic_int* t) {
  atomic_fetch_add_explicit(u, 1u, memory_order_relaxed);
    atomic_fetch_add_explicit(x, 1.0f, memory_order_relaxed);
  uint old = 0; while (!atomic_compare_exchange_weak_explicit(u, &old, old + 1, memory_order_relaxed,
    memory_order_relaxed)) {}
  atomic_fetch_max_explicit(t, 3, memory_order_relaxed); }

//// volatile_device
uint f(volatile device uint* p) { return p[0]; }

//// loops
int f(int n) { int s = 0; for (int i = 0; i < n; ++i) { if (i == 3) continue; s += i; } do { s--; }
    while (s > 9); switch (n) { case 1: return s; default: break; } return s; }

//// pragma_unroll
float f(device float* p) { float s = 0;
#pragma clang loop unroll(full)
  for (int i = 0; i < 4; i++) s += p[i];
  return s; }

//// macros
#define SQUARE(x) ((x) * (x))
#if __METAL_VERSION__ >= 310
float f(float x) { return SQUARE(x); }
#endif

//// metal_func
METAL_FUNC float f(float x) { return x; }
template <typename T> METAL_FUNC T g(T x) { return x; }

//// long_integers
ulong f(uint a, uint b) { return ulong(a) * b + (1ul << 40); }
int64_t g(size_t n) { return int64_t(n); }

//// unsigned_spelling
unsigned int f(unsigned char c) { return c; }
uint8_t g(uint16_t x) { return uint8_t(x); }

//// pointer_arithmetic
float f(const device float* p, int n) { p += n; const device float4* q = (const device float4*)p;
    return q[1].x + *(p - 1); }

//// reinterpret_cast
uint f(const device float* p) { return *reinterpret_cast<const device uint*>(p); }

//// auto
float f(device float* p) { auto q = p + 1; auto x = *q; return x; }

//// const_locals
float f(int n) { const int m = n * 2; constexpr int k = 4; float a[k]; a[0] = m; return a[0]; }

//// array_type
float f() { metal::array<float, 4> a; a[0] = 1.0f; return a[0]; }

//// literals
uint f() { return 0xffu + 1'000u + 0b101u; }

//// names_that_begin_with_keywords
float f(float new_k, float delete_at, float try_count) { return new_k + delete_at + try_count; }

//// ternary_and_select_scalars
float f(float a, float b, bool c) { return (c ? a : b) + select(a, b, a > b); }

//// function_template_specialisation
template <int N> float g(float x) { return x * N; }
template <> float g<1>(float x) { return x; }
float f(float x) { return g<1>(x) + g<2>(x); }
