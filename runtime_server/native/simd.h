// Sixteen lanes of fp32 or of whole numbers, in one register or in pairs of shorter ones.
//
// Each operation is one expression with one order of additions, so a lane's bits depend on its own inputs only.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace MANTLER_ISA {

#define MANTLER_INLINE static inline __attribute__((always_inline))

constexpr int kLanes = 16;

// Compilers keep vectors that are longer than the registers in memory, so those are made of halves here.
template <typename V>
struct Pair {
  V low, high;
};

#if defined(__AVX512F__)
constexpr int kRegisterLanes = 16;
#elif defined(__AVX2__)
constexpr int kRegisterLanes = 8;
#else
constexpr int kRegisterLanes = 4;
#endif
typedef float Floats __attribute__((vector_size(4 * kRegisterLanes)));
typedef int32_t Wholes __attribute__((vector_size(4 * kRegisterLanes)));

#if defined(__AVX512F__)
typedef Floats F32;
typedef Wholes I32;
#elif defined(__AVX2__)
typedef Pair<Floats> F32;
typedef Pair<Wholes> I32;
#else
typedef Pair<Pair<Floats>> F32;
typedef Pair<Pair<Wholes>> I32;
#endif
static_assert(sizeof(F32) == 4 * kLanes && sizeof(I32) == 4 * kLanes, "sixteen lanes");

#define MANTLER_OPERATOR(op)                                                  \
  template <typename V>                                                       \
  MANTLER_INLINE Pair<V> operator op(const Pair<V>& a, const Pair<V>& b) {    \
    return {a.low op b.low, a.high op b.high};                                \
  }
MANTLER_OPERATOR(+)
MANTLER_OPERATOR(-)
MANTLER_OPERATOR(*)
MANTLER_OPERATOR(/)
#undef MANTLER_OPERATOR

template <typename V>
MANTLER_INLINE Pair<V> operator-(const Pair<V>& a) {
  return {-a.low, -a.high};
}
template <typename V>
MANTLER_INLINE Pair<V>& operator+=(Pair<V>& a, const Pair<V>& b) {
  return a = a + b;
}
template <typename V>
MANTLER_INLINE Pair<V>& operator*=(Pair<V>& a, const Pair<V>& b) {
  return a = a * b;
}

template <typename V>
constexpr bool kIsRegister = std::is_same_v<V, Floats> || std::is_same_v<V, Wholes>;
template <typename V>
constexpr int kHalf = sizeof(V) / 8;  // lanes of a half

template <typename V = F32>
MANTLER_INLINE V load(const float* from) {
  V value;
  if constexpr (kIsRegister<V>) {
    std::memcpy(&value, from, sizeof value);
  } else {
    value.low = load<decltype(value.low)>(from);
    value.high = load<decltype(value.low)>(from + kHalf<V>);
  }
  return value;
}

template <typename V>
MANTLER_INLINE void store(float* to, const V& value) {
  if constexpr (kIsRegister<V>) {
    std::memcpy(to, &value, sizeof value);
  } else {
    store(to, value.low);
    store(to + kHalf<V>, value.high);
  }
}

template <typename V = F32>
MANTLER_INLINE V splat(float number) {
  if constexpr (kIsRegister<V>) {
#if defined(__AVX512F__)
    return reinterpret_cast<V>(_mm512_set1_ps(number));
#elif defined(__AVX2__)
    return reinterpret_cast<V>(_mm256_set1_ps(number));
#else
    return V{number, number, number, number};
#endif
  } else {
    const auto half = splat<decltype(V::low)>(number);
    return {half, half};
  }
}

template <typename V>
MANTLER_INLINE V fma(const V& a, const V& b, const V& c) {
  if constexpr (kIsRegister<V>) {
#if defined(__AVX512F__)
    return reinterpret_cast<V>(_mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b),
                                               reinterpret_cast<__m512>(c)));
#elif defined(__AVX2__)
    return reinterpret_cast<V>(_mm256_fmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b),
                                               reinterpret_cast<__m256>(c)));
#else
    return a * b + c;  // compiled with -ffp-contract=fast
#endif
  } else {
    return {fma(a.low, b.low, c.low), fma(a.high, b.high, c.high)};
  }
}

// Where a > b: x, elsewhere y.
template <typename V>
MANTLER_INLINE V where_greater(const V& a, const V& b, const V& x, const V& y) {
  if constexpr (kIsRegister<V>) {
    return a > b ? x : y;
  } else {
    return {where_greater(a.low, b.low, x.low, y.low), where_greater(a.high, b.high, x.high, y.high)};
  }
}

// A bit per lane, the lowest for the first one: whether a >= b.
template <typename V>
MANTLER_INLINE uint32_t not_less(const V& a, const V& b) {
  if constexpr (kIsRegister<V>) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), _CMP_GE_OQ);
#elif defined(__AVX2__)
    return static_cast<uint32_t>(_mm256_movemask_ps(
        _mm256_cmp_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), _CMP_GE_OQ)));
#else
    uint32_t bits = 0;
    for (int i = 0; i < kRegisterLanes; ++i) bits |= static_cast<uint32_t>(a[i] >= b[i]) << i;
    return bits;
#endif
  } else {
    return not_less(a.low, b.low) | not_less(a.high, b.high) << kHalf<V>;
  }
}

// Where a bit is set, the lowest for the first lane: x, elsewhere y.
template <typename V>
MANTLER_INLINE V where_bits(uint32_t bits, const V& x, const V& y) {
  if constexpr (kIsRegister<V>) {
    Wholes places;
    for (int i = 0; i < kRegisterLanes; ++i) places[i] = 1 << i;
    return (places & static_cast<int32_t>(bits)) != 0 ? x : y;
  } else {
    return {where_bits(bits, x.low, y.low), where_bits(bits >> kHalf<V>, x.high, y.high)};
  }
}

template <typename V>
MANTLER_INLINE V max(const V& a, const V& b) {
  return where_greater(a, b, a, b);
}

MANTLER_INLINE Floats to_float(const Wholes& value) { return __builtin_convertvector(value, Floats); }
template <typename V>
MANTLER_INLINE auto to_float(const Pair<V>& value) -> Pair<decltype(to_float(value.low))> {
  return {to_float(value.low), to_float(value.high)};
}

MANTLER_INLINE Wholes to_whole(const Floats& value) { return __builtin_convertvector(value, Wholes); }
template <typename V>
MANTLER_INLINE auto to_whole(const Pair<V>& value) -> Pair<decltype(to_whole(value.low))> {
  return {to_whole(value.low), to_whole(value.high)};
}

// 2^n for whole numbers n from -126 to 127.
MANTLER_INLINE Floats power_of_two(const Floats& n) {
  const Wholes bits = (to_whole(n) + 127) << 23;
  Floats power;
  std::memcpy(&power, &bits, sizeof power);
  return power;
}
template <typename V>
MANTLER_INLINE Pair<V> power_of_two(const Pair<V>& n) {
  return {power_of_two(n.low), power_of_two(n.high)};
}

// fp16 is read from its bits, since not every compiler has a type for it.
template <typename V = F32>
MANTLER_INLINE V load_half(const uint16_t* from) {
  if constexpr (kIsRegister<V>) {
#if defined(__AVX512F__)
    return reinterpret_cast<V>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))));
#elif defined(__AVX2__)
    return reinterpret_cast<V>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
#else
    const Wholes bits = {from[0], from[1], from[2], from[3]};
    // The exponent's bias is 112 less than that of fp32. Infinities are never stored.
    const Wholes magnitude = (bits & 0x7fff) << 13;
    Floats value;
    std::memcpy(&value, &magnitude, sizeof value);
    value *= 0x1p112f;
    Wholes signed_bits;
    std::memcpy(&signed_bits, &value, sizeof signed_bits);
    signed_bits |= (bits & 0x8000) << 16;
    std::memcpy(&value, &signed_bits, sizeof value);
    return value;
#endif
  } else {
    return {load_half<decltype(V::low)>(from), load_half<decltype(V::low)>(from + kHalf<V>)};
  }
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

// bf16 is the upper half of fp32. Rounds to nearest even. What it cannot hold becomes the largest or least number of bf16,
// since infinities would spread, and a "not a number" even to whoever uses the memory next.
MANTLER_INLINE uint16_t float_to_bf16(float value) {
  const float largest = 0x1.fep127f;
  const float bounded = value > largest ? largest : value >= -largest ? value : -largest;
  uint32_t bits;
  std::memcpy(&bits, &bounded, sizeof bits);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Sixteen lanes of two bf16 that lie side by side, and the two numbers that they are multiplied by. Where the processor has
// no such product, those two stay fp32.
#if defined(__AVX512BF16__)
struct Pairs {
  __m512bh both;
};
typedef int32_t Factors;

MANTLER_INLINE Pairs load_pairs(const uint16_t* from) {
  Pairs pairs;
  std::memcpy(&pairs, from, sizeof pairs);
  return pairs;
}

// sum + first * first + second * second
MANTLER_INLINE F32 dot(Factors factors, const Pairs& pairs, const F32& sum) {
  const __m512i all = _mm512_set1_epi32(factors);
  __m512bh twins;
  std::memcpy(&twins, &all, sizeof twins);
  return reinterpret_cast<F32>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum), twins, pairs.both));
}

// Sixteen neighbours as eight factors.
MANTLER_INLINE void store_factors(Factors* to, const F32& value) {
  const __m256bh rounded = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(value));
  std::memcpy(to, &rounded, sizeof rounded);
}
#else
struct Pairs {
  F32 first, second;
};
struct Factors {
  float first, second;
};

template <typename V = F32>
MANTLER_INLINE void split_pairs(const uint16_t* from, V& first, V& second) {
  if constexpr (kIsRegister<V>) {
    Wholes both;
    std::memcpy(&both, from, sizeof both);
    const Wholes low = both << 16, high = both & static_cast<int32_t>(0xffff0000);
    std::memcpy(&first, &low, sizeof first);
    std::memcpy(&second, &high, sizeof second);
  } else {
    split_pairs(from, first.low, second.low);
    split_pairs(from + 2 * kHalf<V>, first.high, second.high);
  }
}

MANTLER_INLINE Pairs load_pairs(const uint16_t* from) {
  Pairs pairs;
  split_pairs(from, pairs.first, pairs.second);
  return pairs;
}

MANTLER_INLINE F32 dot(const Factors& factors, const Pairs& pairs, const F32& sum) {
  return fma(splat(factors.second), pairs.second, fma(splat(factors.first), pairs.first, sum));
}

MANTLER_INLINE void store_factors(Factors* to, const F32& value) { store(&to->first, value); }
#endif

// Halves are added to each other until one number is left.
MANTLER_INLINE float sum_lanes(const Floats& value) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(reinterpret_cast<__m512>(value));
#else
  float lanes[kRegisterLanes];
  store(lanes, value);
  for (int width = kRegisterLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  return lanes[0];
#endif
}
template <typename V>
MANTLER_INLINE float sum_lanes(const Pair<V>& value) {
  return sum_lanes(value.low + value.high);
}

MANTLER_INLINE float max_lanes(const Floats& value) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(reinterpret_cast<__m512>(value));
#else
  float lanes[kRegisterLanes];
  store(lanes, value);
  for (int width = kRegisterLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] = lanes[i] > lanes[i + width] ? lanes[i] : lanes[i + width];
  return lanes[0];
#endif
}
template <typename V>
MANTLER_INLINE float max_lanes(const Pair<V>& value) {
  return max_lanes(max(value.low, value.high));
}

// p = e^r for r within ln 2 / 2 of 0.
template <typename V>
MANTLER_INLINE V exp_near_zero(const V& r) {
  V p = splat<V>(1.3981999507e-3f);
  p = fma(p, r, splat<V>(8.3334519073e-3f));
  p = fma(p, r, splat<V>(4.1665795894e-2f));
  p = fma(p, r, splat<V>(1.6666665459e-1f));
  p = fma(p, r, splat<V>(0.5f));
  return fma(p, r * r, r) + splat<V>(1.0f);
}

// e^x within two units in the last place; 0 for x below -104.
MANTLER_INLINE F32 exp(const F32& exponent) {
  // x = n ln 2 + r
#if defined(__AVX512F__)
  const __m512 x = _mm512_max_ps(reinterpret_cast<__m512>(exponent), _mm512_set1_ps(-110.0f));
  const F32 n = reinterpret_cast<F32>(_mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0));
  F32 r = fma(n, splat(-0.693145752f), reinterpret_cast<F32>(x));
  r = fma(n, splat(-1.42860677e-6f), r);
  return reinterpret_cast<F32>(
      _mm512_scalef_ps(reinterpret_cast<__m512>(exp_near_zero(r)), reinterpret_cast<__m512>(n)));
#else
  const F32 lowest = splat(-87.33654f), highest = splat(88.37626f);
  const F32 x = -max(-max(exponent, lowest), -highest);
  // Adding and subtracting 1.5 * 2^23 rounds to a whole number.
  const F32 magic = splat(12582912.0f);
  const F32 n = fma(x, splat(1.44269504f), magic) - magic;
  F32 r = fma(n, splat(-0.693145752f), x);
  r = fma(n, splat(-1.42860677e-6f), r);
  return where_greater(lowest, exponent, F32{}, exp_near_zero(r) * power_of_two(n));
#endif
}

}  // namespace MANTLER_ISA
