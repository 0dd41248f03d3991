// Metal Shading Language on CUDA, second part: simdgroups, threadgroups, atomics and simdgroup matrices. See cuda_shim.h.
namespace metal {

// ---- simdgroups and threadgroups -------------------------------------------------------------------------------

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
MSL_FN mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(int(a) | int(b)); }
MSL_FN void threadgroup_barrier(mem_flags) { __syncthreads(); }
MSL_FN void simdgroup_barrier(mem_flags) { __syncwarp(); }

#define MSL_ALL_LANES 0xffffffffu
// The barrier first: where ptxas (13.0) cannot tell that a warp is together, it adds a second version of the shuffles,
// for lanes that come one by one, and has been seen to spoil uniform registers in it (a store to a wrong address).
#define MSL_SHUFFLE(name, intrinsic)                                                                              \
  MSL_FN float name(float v, ushort n) { return __syncwarp(), intrinsic(MSL_ALL_LANES, v, n); }                   \
  MSL_FN int name(int v, ushort n) { return __syncwarp(), intrinsic(MSL_ALL_LANES, v, n); }                       \
  MSL_FN uint name(uint v, ushort n) { return __syncwarp(), intrinsic(MSL_ALL_LANES, v, n); }                     \
  MSL_FN half name(half v, ushort n) { return as_type<half>(ushort(name(uint(v.bits), n))); }                     \
  MSL_FN bfloat name(bfloat v, ushort n) { return as_type<bfloat>(ushort(name(uint(v.bits), n))); }               \
  template <typename T>                                                                                           \
  MSL_FN vec<T, 2> name(vec<T, 2> v, ushort n) { return vec<T, 2>(name(v.x, n), name(v.y, n)); }                  \
  template <typename T>                                                                                           \
  MSL_FN vec<T, 4> name(vec<T, 4> v, ushort n) {                                                                  \
    return vec<T, 4>(name(v.x, n), name(v.y, n), name(v.z, n), name(v.w, n));                                     \
  }
MSL_SHUFFLE(simd_shuffle, __shfl_sync)
MSL_SHUFFLE(simd_broadcast, __shfl_sync)
MSL_SHUFFLE(simd_shuffle_xor, __shfl_xor_sync)
MSL_SHUFFLE(simd_shuffle_down, __shfl_down_sync)
MSL_SHUFFLE(simd_shuffle_up, __shfl_up_sync)
template <typename T>
MSL_FN T simd_broadcast_first(T v) { return simd_broadcast(v, 0); }

#define MSL_REDUCE(name, expression)                             \
  template <typename T>                                          \
  MSL_FN T name(T v) {                                           \
    _Pragma("unroll") for (ushort n = 16; n > 0; n /= 2) {       \
      T o = simd_shuffle_xor(v, n);                              \
      v = expression;                                            \
    }                                                            \
    return v;                                                    \
  }
MSL_REDUCE(simd_sum, v + o)
MSL_REDUCE(simd_max, metal::max(v, o))
MSL_REDUCE(simd_min, metal::min(v, o))
MSL_FN uint simd_sum(uint v) { return __reduce_add_sync(MSL_ALL_LANES, v); }
MSL_FN int simd_sum(int v) { return __reduce_add_sync(MSL_ALL_LANES, v); }
MSL_FN uint simd_max(uint v) { return __reduce_max_sync(MSL_ALL_LANES, v); }
MSL_FN int simd_max(int v) { return __reduce_max_sync(MSL_ALL_LANES, v); }
MSL_FN uint simd_min(uint v) { return __reduce_min_sync(MSL_ALL_LANES, v); }
MSL_FN int simd_min(int v) { return __reduce_min_sync(MSL_ALL_LANES, v); }
MSL_FN uint simd_or(uint v) { return __reduce_or_sync(MSL_ALL_LANES, v); }
MSL_FN uint simd_and(uint v) { return __reduce_and_sync(MSL_ALL_LANES, v); }

MSL_FN uint msl_lane() {
  uint lane;
  asm("mov.u32 %0, %%laneid;" : "=r"(lane));
  return lane;
}
template <typename T>
MSL_FN T simd_prefix_inclusive_sum(T v) {
  uint lane = msl_lane();
  _Pragma("unroll") for (ushort n = 1; n < 32; n *= 2) {
    T o = simd_shuffle_up(v, n);
    v = lane >= n ? v + o : v;
  }
  return v;
}
template <typename T>
MSL_FN T simd_prefix_exclusive_sum(T v) { return simd_prefix_inclusive_sum(v) - v; }
MSL_FN bool simd_any(bool v) { return __any_sync(MSL_ALL_LANES, v); }
MSL_FN bool simd_all(bool v) { return __all_sync(MSL_ALL_LANES, v); }
struct simd_vote {
  ulong mask;
  MSL_FN explicit operator ulong() const { return mask; }
};
MSL_FN simd_vote simd_ballot(bool v) { return simd_vote{__ballot_sync(MSL_ALL_LANES, v)}; }

// ---- atomics ---------------------------------------------------------------------------------------------------

enum memory_order { memory_order_relaxed };
template <typename T>
struct atomic {
  T value;
};
typedef atomic<uint> atomic_uint;
typedef atomic<int> atomic_int;
typedef atomic<float> atomic_float;
template <typename T>
MSL_FN T atomic_load_explicit(const atomic<T>* a, memory_order) { return *(const volatile T*)&a->value; }
template <typename T>
MSL_FN void atomic_store_explicit(atomic<T>* a, typename identity<T>::type v, memory_order) {
  *(volatile T*)&a->value = v;
}
#define MSL_ATOMIC(name, intrinsic)                                                      \
  template <typename T>                                                                  \
  MSL_FN T name(atomic<T>* a, typename identity<T>::type v, memory_order) {              \
    return intrinsic(&a->value, v);                                                      \
  }
MSL_ATOMIC(atomic_fetch_add_explicit, ::atomicAdd)
MSL_ATOMIC(atomic_fetch_max_explicit, ::atomicMax)
MSL_ATOMIC(atomic_fetch_min_explicit, ::atomicMin)
MSL_ATOMIC(atomic_fetch_or_explicit, ::atomicOr)
MSL_ATOMIC(atomic_exchange_explicit, ::atomicExch)

// ---- simdgroup matrices ------------------------------------------------------------------------------------------

template <typename T, int C, int R>
struct simdgroup_matrix {
  static_assert(C == 8 && R == 8, "simdgroup matrices are 8x8");
  vec<T, 2> elements;
  // The lane holds (column, row) instead of (row, column): the layout of a right-hand operand. Known at compile
  // time once inlined, so that a transposed load costs nothing where a product wants it.
  bool transposed;
  simdgroup_matrix() = default;
  MSL_FN explicit simdgroup_matrix(T diagonal) : transposed(false) {
    uint lane = msl_lane(), row = lane / 4, column = lane % 4 * 2;
    elements = vec<T, 2>(row == column ? diagonal : T(0), row == column + 1 ? diagonal : T(0));
  }
  MSL_FN vec<T, 2>& thread_elements() { return elements; }
};
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;

template <typename T, int C, int R>
MSL_FN simdgroup_matrix<T, C, R> make_filled_simdgroup_matrix(T v) {
  simdgroup_matrix<T, C, R> m;
  m.elements = vec<T, 2>(v, v);
  m.transposed = false;
  return m;
}

template <typename T>
MSL_FN void simdgroup_load(
    simdgroup_matrix<T, 8, 8>& m, const T* p, ulong row_length = 8, ulong2 origin = ulong2(0), bool transpose = false) {
  uint lane = msl_lane(), major = lane / 4, minor = lane % 4 * 2, length = uint(row_length);
  if (transpose) {
    p += uint(origin.x) * length + uint(origin.y);
  } else {
    p += uint(origin.y) * length + uint(origin.x);
  }
  if (sizeof(T) == 4 && transpose) {
    m.elements = vec<T, 2>(p[minor * length + major], p[(minor + 1) * length + major]);
    m.transposed = false;
  } else {
    m.elements = *(const vec<T, 2>*)(p + (major * length + minor));
    m.transposed = transpose;
  }
}
template <typename T>
MSL_FN uint msl_operand(const simdgroup_matrix<T, 8, 8>& m, bool right) {
  uint bits = as_type<uint>(m.elements);
  if (m.transposed != right) {
    uint moved;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(moved) : "r"(bits));
    return moved;
  }
  return bits;
}
template <typename T>
MSL_FN void simdgroup_store(
    const simdgroup_matrix<T, 8, 8>& m, T* p, ulong row_length = 8, ulong2 origin = ulong2(0), bool transpose = false) {
  uint lane = msl_lane(), major = lane / 4, minor = lane % 4 * 2, length = uint(row_length);
  if (transpose) {
    p += uint(origin.x) * length + uint(origin.y);
  } else {
    p += uint(origin.y) * length + uint(origin.x);
  }
  if (transpose != m.transposed) {
    p[minor * length + major] = m.elements.x;
    p[(minor + 1) * length + major] = m.elements.y;
  } else {
    *(vec<T, 2>*)(p + (major * length + minor)) = m.elements;
  }
}

// One tensor-core step: the lower 8 rows in c, the upper 8 in e (zero where there is one 8x8 product only).
template <typename T>
struct msl_tensor_core;
#define MSL_TENSOR_CORE(T, name)                                                                                  \
  template <>                                                                                                     \
  struct msl_tensor_core<T> {                                                                                     \
    MSL_FN static void k8(float2& c, float2& e, uint a0, uint a1, uint b) {                                       \
      asm("mma.sync.aligned.m16n8k8.row.col.f32." name "." name ".f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "             \
          "{%0,%1,%2,%3};"                                                                                        \
          : "+f"(c.x), "+f"(c.y), "+f"(e.x), "+f"(e.y)                                                            \
          : "r"(a0), "r"(a1), "r"(b));                                                                            \
    }                                                                                                             \
    MSL_FN static void k16(float2& c, float2& e, uint a0, uint a1, uint a2, uint a3, uint b0, uint b1) {          \
      asm("mma.sync.aligned.m16n8k16.row.col.f32." name "." name ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "   \
          "{%0,%1,%2,%3};"                                                                                        \
          : "+f"(c.x), "+f"(c.y), "+f"(e.x), "+f"(e.y)                                                            \
          : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));                                                \
    }                                                                                                             \
  };
MSL_TENSOR_CORE(bfloat, "bf16")
MSL_TENSOR_CORE(half, "f16")

template <typename T>
MSL_FN void simdgroup_multiply_accumulate(
    simdgroup_float8x8& d, const simdgroup_matrix<T, 8, 8>& a, const simdgroup_matrix<T, 8, 8>& b,
    const simdgroup_float8x8& c) {
  float2 low = c.elements, high = float2(0.0f);
  msl_tensor_core<T>::k8(low, high, msl_operand(a, false), 0, msl_operand(b, true));
  d.elements = low;
  d.transposed = false;
}
MSL_FN void simdgroup_multiply_accumulate(
    simdgroup_float8x8& d, const simdgroup_float8x8& a, const simdgroup_float8x8& b, const simdgroup_float8x8& c) {
  uint lane = msl_lane();
  float2 sum = c.elements;
  _Pragma("unroll") for (ushort k = 0; k < 8; k++) {
    float left = simd_shuffle(k % 2 ? a.elements.y : a.elements.x, ushort(lane / 4 * 4 + k / 2));
    float2 right = simd_shuffle(b.elements, ushort(k * 4 + lane % 4));
    sum = fma(float2(left), right, sum);
  }
  d.elements = sum;
  d.transposed = false;
}
template <typename D, typename A, typename B>
MSL_FN void simdgroup_multiply(D& d, const A& a, const B& b) {
  simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<float, 8, 8>(0.0f));
}

// [d0; d1] += [a00 a01; a10 a11] [b0; b1]: four 8x8 products of the portable text in one instruction.
#define SIMDGROUP_MATRIX_16X8X16 1
template <typename T>
MSL_FN void simdgroup_multiply_accumulate_16x8x16(
    simdgroup_float8x8& d0, simdgroup_float8x8& d1, const simdgroup_matrix<T, 8, 8>& a00,
    const simdgroup_matrix<T, 8, 8>& a01, const simdgroup_matrix<T, 8, 8>& a10, const simdgroup_matrix<T, 8, 8>& a11,
    const simdgroup_matrix<T, 8, 8>& b0, const simdgroup_matrix<T, 8, 8>& b1) {
  msl_tensor_core<T>::k16(
      d0.elements, d1.elements, msl_operand(a00, false), msl_operand(a10, false), msl_operand(a01, false),
      msl_operand(a11, false), msl_operand(b0, true), msl_operand(b1, true));
}

// Four blocks in one instruction: each lane names the row (lane % 8) of block (lane / 8), 16 bytes in threadgroup memory.
template <bool TRANSPOSE, typename T>
MSL_FN void msl_load_2x2(
    simdgroup_matrix<T, 8, 8>& m0, simdgroup_matrix<T, 8, 8>& m1, simdgroup_matrix<T, 8, 8>& m2,
    simdgroup_matrix<T, 8, 8>& m3, const T* p, int pitch, int odd, int upper) {
  uint lane = msl_lane(), r0, r1, r2, r3;
  uint address = uint(
      __cvta_generic_to_shared(p + (int(lane % 8) * pitch + int(lane / 8 % 2) * odd + int(lane / 16) * upper)));
  if (TRANSPOSE) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
        : "=r"(r0), "=r"(r1), "=r"(r2), "=r"(r3) : "r"(address) : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
        : "=r"(r0), "=r"(r1), "=r"(r2), "=r"(r3) : "r"(address) : "memory");
  }
  m0.elements = as_type<vec<T, 2>>(r0);
  m1.elements = as_type<vec<T, 2>>(r1);
  m2.elements = as_type<vec<T, 2>>(r2);
  m3.elements = as_type<vec<T, 2>>(r3);
}
template <typename T>
MSL_FN void simdgroup_load_left_2x2(
    simdgroup_matrix<T, 8, 8>& a00, simdgroup_matrix<T, 8, 8>& a01, simdgroup_matrix<T, 8, 8>& a10,
    simdgroup_matrix<T, 8, 8>& a11, const T* p, int pitch, int right, int down) {
  msl_load_2x2<false>(a00, a10, a01, a11, p, pitch, down, right);  // in the order of the product's registers
  a00.transposed = a01.transposed = a10.transposed = a11.transposed = false;
}
template <bool TRANSPOSE, typename T>
MSL_FN void simdgroup_load_right_2x2(
    simdgroup_matrix<T, 8, 8>& b0, simdgroup_matrix<T, 8, 8>& b1, simdgroup_matrix<T, 8, 8>& c0,
    simdgroup_matrix<T, 8, 8>& c1, const T* p, int pitch, int along, int beside) {
  msl_load_2x2<!TRANSPOSE>(b0, b1, c0, c1, p, pitch, along, beside);
  b0.transposed = b1.transposed = c0.transposed = c1.transposed = true;
}

// Copies past the registers, of 16 bytes.
#define DEVICE_COPY_ASYNC 1
MSL_FN void device_copy_async(uint4* to, const uint4* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
      :: "r"(uint(__cvta_generic_to_shared(to))), "l"(from) : "memory");
}
MSL_FN void device_copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING>
MSL_FN void device_copy_wait() { asm volatile("cp.async.wait_group %0;" :: "n"(PENDING) : "memory"); }

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
// See together.h. Both operands are rows of 128 bytes, swizzled, from 1024 bytes on.
#define SIMDGROUPS_MATRIX_64X128 1
MSL_FN void simdgroups_multiply_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
MSL_FN void simdgroups_multiply_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
// Until all but the last PENDING are done.
template <int PENDING>
MSL_FN void simdgroups_multiply_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(PENDING) : "memory"); }
MSL_FN void simdgroups_multiply_publish() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
MSL_FN ulong msl_swizzled(const void* p) {
  return ulong(uint(__cvta_generic_to_shared(p)) >> 4) | 1ul << 16 | 64ul << 32 | 1ul << 62;
}
template <typename T>
MSL_FN void simdgroups_multiply_accumulate_64x128x16(
    simdgroup_float8x8* d0, simdgroup_float8x8* d1, const uint4* left, const uint4* right, int chunk, uint);
#define MSL_FOUR(j) "+f"(d0[j].elements.x), "+f"(d0[j].elements.y), "+f"(d1[j].elements.x), "+f"(d1[j].elements.y)
#define MSL_64X128(T, name)                                                                                       \
  template <>                                                                                                     \
  MSL_FN void simdgroups_multiply_accumulate_64x128x16<T>(                                                        \
      simdgroup_float8x8* d0, simdgroup_float8x8* d1, const uint4* left, const uint4* right, int chunk, uint) {   \
    asm volatile("{.reg .pred p; setp.eq.u32 p, 0, 0; "                                                           \
        "wgmma.mma_async.sync.aligned.m64n128k16.f32." name "." name " {"                                         \
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "                                  \
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "                        \
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "                        \
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "                       \
        "%64, %65, p, 1, 1, 0, 0;}"                                                                               \
        : MSL_FOUR(0), MSL_FOUR(1), MSL_FOUR(2), MSL_FOUR(3),                                                     \
          MSL_FOUR(4), MSL_FOUR(5), MSL_FOUR(6), MSL_FOUR(7),                                                     \
          MSL_FOUR(8), MSL_FOUR(9), MSL_FOUR(10), MSL_FOUR(11),                                                   \
          MSL_FOUR(12), MSL_FOUR(13), MSL_FOUR(14), MSL_FOUR(15)                                                  \
        : "l"(msl_swizzled(left + chunk)), "l"(msl_swizzled(right + chunk)) : "memory");                          \
  }
MSL_64X128(bfloat, "bf16")
MSL_64X128(half, "f16")
#endif

}  // namespace metal
