// One block of 32 inputs: the whole-number products of one panel and the rows of a pass. See linear.h.
#pragma once

#include "linear.h"

namespace MANTLER_ISA {

// Rows whose sums fit the registers; a panel is read again for the next ones.
#if defined(__AVX512F__)
constexpr int kPass = kTile;
#else
constexpr int kPass = 4;
#endif

// A block of the rows of a pass, as Rows keeps it.
struct Inputs {
  const int8_t* bytes;    // 32 for each row
  const float* scales;    // of each row
  const float* totals;    // scale * sum of the bytes
  const int32_t* wholes;  // sum of the bytes
};

MANTLER_INLINE int32_t quad(const int8_t* bytes) {
  int32_t value;
  std::memcpy(&value, bytes, 4);
  return value;
}

// d and m of the panel's outputs.
template <Format format>
struct Scales {
  F32 d, m;

  explicit Scales(const uint8_t* record) {
    d = load_half(reinterpret_cast<const uint16_t*>(record));
    if constexpr (format == Format::kInt4)
      m = load_half(reinterpret_cast<const uint16_t*>(record + 2 * kLanes));
    else
      m = d * splat(-128.0f);
  }

  // Adds one row's products of this block.
  __attribute__((always_inline)) void add(const I32& products, const Inputs& in, int row, F32& sum) const {
    sum = fma(to_float(products) * splat(in.scales[row]), d, sum);
    sum = fma(splat(in.totals[row]), m, sum);
  }
};

template <Format format>
constexpr int kHead = format == Format::kInt4 ? 4 * kLanes : 2 * kLanes;  // bytes of d and m

#if defined(__AVX512VNNI__)

template <Format format, int count>
MANTLER_INLINE void add_block(const uint8_t* record, const Inputs& in, F32 (&sums)[count]) {
  const Scales<format> scales(record);
  __m512i groups[kGroups];
  for (int i = 0; i < (format == Format::kInt4 ? kGroups / 2 : kGroups); ++i) {
    const __m512i bytes = _mm512_loadu_si512(record + kHead<format> + 64 * i);
    if constexpr (format == Format::kInt4) {
      const __m512i low = _mm512_set1_epi8(15);
      groups[2 * i] = _mm512_and_si512(bytes, low);
      groups[2 * i + 1] = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low);
    } else {
      groups[i] = bytes;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < count; ++r) {
    __m512i products = _mm512_setzero_si512();
    for (int g = 0; g < kGroups; ++g)
      products = _mm512_dpbusd_epi32(products, groups[g], _mm512_set1_epi32(quad(in.bytes + r * kBlock + 4 * g)));
    scales.add(reinterpret_cast<I32>(products), in, r, sums[r]);
  }
}

#elif defined(__AVX2__)

// Products of neighbours are added in 16 bits: 15 * 127 * 2 eight times over is below 2^15.
template <int count>
MANTLER_INLINE void four_bit_products(const uint8_t* bytes, const Inputs& in, __m256i (&products)[count][2]) {
  const __m256i low = _mm256_set1_epi8(15);
  for (int i = 0; i < kGroups / 2; ++i) {
    __m256i weights[2][2];
    for (int h = 0; h < 2; ++h) {
      const __m256i pair = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes + 64 * i + 32 * h));
      weights[0][h] = _mm256_and_si256(pair, low);
      weights[1][h] = _mm256_and_si256(_mm256_srli_epi16(pair, 4), low);
    }
    for (int r = 0; r < count; ++r)
      for (int g = 0; g < 2; ++g) {
        const __m256i inputs = _mm256_set1_epi32(quad(in.bytes + r * kBlock + 8 * i + 4 * g));
        for (int h = 0; h < 2; ++h) {
          const __m256i some = _mm256_maddubs_epi16(weights[g][h], inputs);
          products[r][h] = i == 0 && g == 0 ? some : _mm256_add_epi16(products[r][h], some);
        }
      }
  }
  const __m256i ones = _mm256_set1_epi16(1);
  for (int r = 0; r < count; ++r)
    for (int h = 0; h < 2; ++h) products[r][h] = _mm256_madd_epi16(products[r][h], ones);
}

// The stored bytes reach 255, with which neighbours would not fit 16 bits. So they are taken without their offset of
// 128, the sign of each moves to the input, and the offset's part is added at the end.
template <int count>
MANTLER_INLINE void eight_bit_products(const uint8_t* bytes, const Inputs& in, __m256i (&products)[count][2]) {
  const __m256i offset = _mm256_set1_epi8(-128), ones = _mm256_set1_epi16(1);
  for (int r = 0; r < count; ++r) products[r][0] = products[r][1] = _mm256_set1_epi32(128 * in.wholes[r]);
  for (int g = 0; g < kGroups; ++g) {
    __m256i weights[2], sizes[2];
    for (int h = 0; h < 2; ++h) {
      const __m256i stored = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes + 64 * g + 32 * h));
      weights[h] = _mm256_xor_si256(stored, offset);
      sizes[h] = _mm256_abs_epi8(weights[h]);
    }
    for (int r = 0; r < count; ++r) {
      const __m256i inputs = _mm256_set1_epi32(quad(in.bytes + r * kBlock + 4 * g));
      for (int h = 0; h < 2; ++h) {
        const __m256i pairs = _mm256_maddubs_epi16(sizes[h], _mm256_sign_epi8(inputs, weights[h]));
        products[r][h] = _mm256_add_epi32(products[r][h], _mm256_madd_epi16(pairs, ones));
      }
    }
  }
}

template <Format format, int count>
MANTLER_INLINE void add_block(const uint8_t* record, const Inputs& in, F32 (&sums)[count]) {
  __m256i products[count][2];
  if constexpr (format == Format::kInt4)
    four_bit_products<count>(record + kHead<format>, in, products);
  else
    eight_bit_products<count>(record + kHead<format>, in, products);
  const Scales<format> scales(record);
  for (int r = 0; r < count; ++r) {
    const I32 both = {reinterpret_cast<Wholes>(products[r][0]), reinterpret_cast<Wholes>(products[r][1])};
    scales.add(both, in, r, sums[r]);
  }
}

#else

template <Format format, int count>
MANTLER_INLINE void add_block(const uint8_t* record, const Inputs& in, F32 (&sums)[count]) {
  const Scales<format> scales(record);
  const uint8_t* bytes = record + kHead<format>;
  for (int r = 0; r < count; ++r) {
    int32_t products[kLanes] = {};
    for (int g = 0; g < kGroups; ++g) {
      const int8_t* inputs = in.bytes + r * kBlock + 4 * g;
      for (int lane = 0; lane < kLanes; ++lane)
        for (int i = 0; i < 4; ++i) {
          const uint8_t stored = bytes[(format == Format::kInt4 ? g / 2 : g) * 64 + 4 * lane + i];
          const int weight = format == Format::kInt8 ? stored : g % 2 ? stored >> 4 : stored & 15;
          products[lane] += weight * inputs[i];
        }
    }
    I32 all;
    std::memcpy(&all, products, sizeof all);
    scales.add(all, in, r, sums[r]);
  }
}

#endif

}  // namespace MANTLER_ISA
