// 6-bit weights, which lanes read as neighbouring words and hand each other.
//
// A lane's chunk is three words of one or two uints. Reads 12 or 24 bytes apart would touch every line three times; those of
// neighbouring words touch it once, and when they have come each lane takes what it needs from the lanes that have it.
#pragma once
#include "packed.h"

// A third of a lane's chunk of 16 values, or of 32 (WIDE).
template <bool WIDE>
struct NeighbourWord {
  typedef uint type;
};

template <>
struct NeighbourWord<true> {
  typedef uint2 type;
};

// What is read of a step as zeros.
template <int R, typename W>
METAL_FUNC void clear_neighbours(thread W* read) {
#pragma clang loop unroll(full)
  for (int i = 0; i < 3 * R; ++i) {
    read[i] = W(0);
  }
}

// Starts the loads of step `step` of each of R rows of K weights; words beyond the last are left as they are.
template <int K, int R, typename W, typename Row>
METAL_FUNC void load_neighbours(const device uint* weight, const thread Row* rows, int step, int lane, thread W* read) {
  constexpr int WORDS = row_words(FORMAT_Q6, K) / int(sizeof(W) / 4);
#pragma clang loop unroll(full)
  for (int i = 0; i < 3; ++i) {
    int word = step * 96 + 32 * i;
    if (word + 32 <= WORDS || word + lane < WORDS) {
#pragma clang loop unroll(full)
      for (int r = 0; r < R; ++r) {
        read[3 * r + i] = read_once((const device W*)weight + rows[r] * WORDS + lane, word);
      }
    }
  }
}

METAL_FUNC void put_word(uint word, thread uint* w) {
  w[0] = word;
}

METAL_FUNC void put_word(uint2 word, thread uint* w) {
  w[0] = word.x;
  w[1] = word.y;
}

// The words of this lane's chunk of a row, from the lanes that have read them. All lanes call it together.
template <typename W>
METAL_FUNC void own_words(const thread W* read, uint lane, thread uint* w) {
  // Word 32 k + lane is word (2 k + lane) % 3 of its owner's chunk.
  bool one = lane % 3 == 1;
  bool two = lane % 3 == 2;
  W give[3];
  give[0] = two ? read[2] : one ? read[1] : read[0];
  give[1] = two ? read[1] : one ? read[0] : read[2];
  give[2] = two ? read[0] : one ? read[2] : read[1];
#pragma clang loop unroll(full)
  for (uint i = 0; i < 3; ++i) {
    put_word(simd_shuffle(give[i], ushort((3 * lane + i) % 32)), w + i * uint(sizeof(W) / 4));
  }
}
