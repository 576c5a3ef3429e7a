// Sixteen lanes of fp32, whatever the processor has: compilers split the vectors where its registers are shorter.
//
// Each operation is one expression with one order of additions, so a lane's bits depend on its own inputs only.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace MANTLER_ISA {

typedef float F32 __attribute__((vector_size(64)));
typedef int32_t I32 __attribute__((vector_size(64)));
typedef uint8_t U8 __attribute__((vector_size(64)));
typedef int8_t I8 __attribute__((vector_size(64)));
typedef uint16_t U16 __attribute__((vector_size(32)));

constexpr int kLanes = 16;

#define MANTLER_INLINE static inline __attribute__((always_inline))

MANTLER_INLINE F32 load(const float* from) {
  F32 value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

MANTLER_INLINE U8 load_bytes(const uint8_t* from) {
  U8 value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

MANTLER_INLINE void store(float* to, F32 value) { std::memcpy(to, &value, sizeof value); }

MANTLER_INLINE F32 splat(float v) { return F32{v, v, v, v, v, v, v, v, v, v, v, v, v, v, v, v}; }

MANTLER_INLINE F32 fma(F32 a, F32 b, F32 c) {
#if defined(__AVX512F__)
  return reinterpret_cast<F32>(_mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
#else
  return a * b + c;  // compiled with -ffp-contract=fast
#endif
}

MANTLER_INLINE F32 max(F32 a, F32 b) { return a > b ? a : b; }

MANTLER_INLINE F32 to_float(I32 value) { return __builtin_convertvector(value, F32); }

// fp16 without a type for it, since not every compiler has one.
MANTLER_INLINE F32 load_half(const uint16_t* from) {
#if defined(__AVX512F__)
  return reinterpret_cast<F32>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
#elif defined(__F16C__)
  F32 value;
  const __m256 low = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
  const __m256 high = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 8)));
  std::memcpy(&value, &low, 32);
  std::memcpy(reinterpret_cast<char*>(&value) + 32, &high, 32);
  return value;
#else
  typedef _Float16 F16 __attribute__((vector_size(32)));
  F16 half;
  std::memcpy(&half, from, sizeof half);
  return __builtin_convertvector(half, F32);
#endif
}

MANTLER_INLINE float half_to_float(uint16_t half) {
#if defined(__F16C__)
  return _cvtsh_ss(half);
#else
  _Float16 value;
  std::memcpy(&value, &half, sizeof value);
  return value;
#endif
}

// Rounds to nearest even. Beyond fp16's range it gives the largest number, since infinities would spread.
MANTLER_INLINE uint16_t float_to_half(float value) {
  const float bounded = value > 65504.0f ? 65504.0f : value < -65504.0f ? -65504.0f : value;
#if defined(__F16C__)
  return static_cast<uint16_t>(_cvtss_sh(bounded, _MM_FROUND_TO_NEAREST_INT));
#else
  const _Float16 half = static_cast<_Float16>(bounded);
  uint16_t bits;
  std::memcpy(&bits, &half, sizeof bits);
  return bits;
#endif
}

// Halves are added to each other until one number is left.
MANTLER_INLINE float sum_lanes(F32 value) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(reinterpret_cast<__m512>(value));
#else
  float lanes[kLanes];
  store(lanes, value);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
#endif
}

MANTLER_INLINE float max_lanes(F32 value) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(reinterpret_cast<__m512>(value));
#else
  float lanes[kLanes];
  store(lanes, value);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
  return lanes[0];
#endif
}

// e^x within two units in the last place; 0 for x below -87.
MANTLER_INLINE F32 exp(F32 x) {
  const F32 lowest = splat(-87.33654f);
  const auto tiny = x < lowest;
  x = tiny ? lowest : x;
  x = x > splat(88.37626f) ? splat(88.37626f) : x;
  // x = n ln 2 + r. Adding and subtracting 1.5 * 2^23 rounds to a whole number.
  const F32 magic = splat(12582912.0f);
  const F32 n = fma(x, splat(1.44269504f), magic) - magic;
  F32 r = fma(n, splat(-0.693145752f), x);
  r = fma(n, splat(-1.42860677e-6f), r);
  F32 p = splat(1.3981999507e-3f);
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(0.5f));
  p = fma(p, r * r, r) + splat(1.0f);
  const I32 power = (__builtin_convertvector(n, I32) + 127) << 23;
  F32 scale;
  std::memcpy(&scale, &power, sizeof scale);
  return tiny ? F32{} : p * scale;
}

// acc + four products of unsigned and signed bytes in each lane; `quad` holds the four signed bytes for every lane.
MANTLER_INLINE I32 dot(I32 acc, U8 bytes, int32_t quad) {
#if defined(__AVX512VNNI__)
  return reinterpret_cast<I32>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(acc), reinterpret_cast<__m512i>(bytes), _mm512_set1_epi32(quad)));
#elif defined(__AVX2__)
  // Products of neighbours are added in 16 bits with saturation, which odd and even bytes alone never reach.
  __m256i halves[2], sums[2];
  std::memcpy(halves, &bytes, 64);
  std::memcpy(sums, &acc, 64);
  const __m256i signed_bytes = _mm256_set1_epi32(quad), ones = _mm256_set1_epi16(1), even = _mm256_set1_epi16(0x00ff);
  for (int i = 0; i < 2; ++i) {
    const __m256i low = _mm256_maddubs_epi16(_mm256_and_si256(halves[i], even), signed_bytes);
    const __m256i high = _mm256_maddubs_epi16(_mm256_andnot_si256(even, halves[i]), signed_bytes);
    sums[i] = _mm256_add_epi32(sums[i], _mm256_add_epi32(_mm256_madd_epi16(low, ones), _mm256_madd_epi16(high, ones)));
  }
  I32 result;
  std::memcpy(&result, sums, 64);
  return result;
#else
  int8_t signed_bytes[4];
  std::memcpy(signed_bytes, &quad, 4);
  for (int lane = 0; lane < kLanes; ++lane)
    for (int i = 0; i < 4; ++i) acc[lane] += static_cast<int32_t>(bytes[4 * lane + i]) * signed_bytes[i];
  return acc;
#endif
}

}  // namespace MANTLER_ISA
