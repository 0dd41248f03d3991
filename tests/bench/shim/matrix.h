// simdgroup_matrix with Apple's lane layout: each lane holds two neighbours of one row.
#pragma once

namespace metal {

inline ushort msl_matrix_row(uint lane) { return (ushort)((lane / 4 & 4) + (lane / 2 & 3)); }
inline ushort msl_matrix_col(uint lane) { return (ushort)((lane / 4 & 2) * 2 + (lane & 1) * 2); }
// The lane that holds (row, even column or its odd neighbour).
inline uint msl_matrix_lane(uint row, uint col) {
  return ((row & 4) << 2) | ((col & 4) << 1) | ((row & 3) << 1) | ((col >> 1) & 1);
}

template <class T, int Cols, int Rows>
struct simdgroup_matrix {
  static_assert(Cols == 8 && Rows == 8, "simdgroup_matrix is 8x8");
  static_assert(is_floating_point<T>::value, "simdgroup_matrix holds float, half or bfloat");
  typedef vec<T, 2> storage_type;
  storage_type elements;
  simdgroup_matrix() = default;
  explicit simdgroup_matrix(T diagonal) {
    const uint lane = msl_lane_index();
    for (int i = 0; i < 2; i++) {
      elements[i] = msl_matrix_row(lane) == msl_matrix_col(lane) + i ? diagonal : (T)0.0f;
    }
  }
  __private storage_type& thread_elements() __private { return elements; }
  const __private storage_type& thread_elements() const __private { return elements; }
};

typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;
typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;

template <class T, int Cols, int Rows>
inline simdgroup_matrix<T, Cols, Rows> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, Cols, Rows> m;
  m.elements = vec<T, 2>(value);
  return m;
}
template <class T, int Cols, int Rows>
inline simdgroup_matrix<T, Cols, Rows> make_diagonal_simdgroup_matrix(T value) {
  return simdgroup_matrix<T, Cols, Rows>(value);
}

// Loads and stores need the whole simdgroup on Metal; the checked build verifies that it is there.
inline void msl_matrix_together(uint line) {
#ifdef MSL_CHECKED
  uint nothing = 0;
  msl_exchange(msl_kind_matrix_memory, line, &nothing, sizeof(nothing));
#endif
}

#define MSL_MATRIX_MEMORY(SPACE)                                                                              \
  template <class T>                                                                                          \
  inline void simdgroup_load(__private simdgroup_matrix<T, 8, 8>& m, const SPACE T* source,                   \
                             ulong elements_per_row = 8, ulong2 origin = ulong2(0), bool transpose = false,   \
                             MSL_LINE) {                                                                      \
    msl_matrix_together(line);                                                                                \
    const uint lane = msl_lane_index();                                                                       \
    for (uint i = 0; i < 2; i++) {                                                                            \
      ulong row = msl_matrix_row(lane), col = msl_matrix_col(lane) + i;                                       \
      if (transpose) { const ulong t = row; row = col; col = t; }                                             \
      m.elements[i] = source[(origin.y + row) * elements_per_row + origin.x + col];                           \
    }                                                                                                         \
  }                                                                                                           \
  template <class T>                                                                                          \
  inline void simdgroup_store(simdgroup_matrix<T, 8, 8> m, SPACE T* target, ulong elements_per_row = 8,       \
                              ulong2 origin = ulong2(0), bool transpose = false, MSL_LINE) {                  \
    msl_matrix_together(line);                                                                                \
    const uint lane = msl_lane_index();                                                                       \
    for (uint i = 0; i < 2; i++) {                                                                            \
      ulong row = msl_matrix_row(lane), col = msl_matrix_col(lane) + i;                                       \
      if (transpose) { const ulong t = row; row = col; col = t; }                                             \
      target[(origin.y + row) * elements_per_row + origin.x + col] = m.elements[i];                           \
    }                                                                                                         \
  }
MSL_MATRIX_MEMORY(__global)
MSL_MATRIX_MEMORY(__local)
#undef MSL_MATRIX_MEMORY

struct msl_matrix_pair { float a[2]; float b[2]; };

template <class D, class A, class B, class C>
inline void simdgroup_multiply_accumulate(__private simdgroup_matrix<D, 8, 8>& d,
                                          simdgroup_matrix<A, 8, 8> a, simdgroup_matrix<B, 8, 8> b,
                                          simdgroup_matrix<C, 8, 8> c, MSL_LINE) {
  msl_matrix_pair mine = {{(float)a.elements[0], (float)a.elements[1]}, {(float)b.elements[0], (float)b.elements[1]}};
  __generic msl_slots* s = msl_exchange(msl_kind_matrix, line, &mine, sizeof(mine));
  if (s->active != 0xffffffffu) msl_inactive_lane(msl_kind_matrix, line, (uint)__builtin_ctz(~s->active));
  const uint lane = msl_lane_index();
  const uint row = msl_matrix_row(lane), col = msl_matrix_col(lane);
  float sum[2] = {(float)c.elements[0], (float)c.elements[1]};
  for (uint k = 0; k < 8; k++) {
    const __generic msl_matrix_pair* left = (const __generic msl_matrix_pair*)s->data[msl_matrix_lane(row, k)];
    const __generic msl_matrix_pair* right = (const __generic msl_matrix_pair*)s->data[msl_matrix_lane(k, col)];
    const float x = left->a[k & 1];
    sum[0] = __builtin_fmaf(x, right->b[0], sum[0]);
    sum[1] = __builtin_fmaf(x, right->b[1], sum[1]);
  }
  d.elements[0] = (D)sum[0];
  d.elements[1] = (D)sum[1];
}

template <class D, class A, class B>
inline void simdgroup_multiply(__private simdgroup_matrix<D, 8, 8>& d, simdgroup_matrix<A, 8, 8> a,
                               simdgroup_matrix<B, 8, 8> b, MSL_LINE) {
  simdgroup_multiply_accumulate(d, a, b, make_filled_simdgroup_matrix<D, 8, 8>((D)0.0f), line);
}

}  // namespace metal
