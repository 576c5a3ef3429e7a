#include "attention.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace MANTLER_ISA {
namespace {

constexpr int kSegment = kSegmentBlocks * kBlockTokens;
constexpr int kMaxVectors = 16;  // head_dim 256
// Queries that share one pass over the keys of a head, and vectors of values that are summed at once: as many as the
// registers hold.
#if defined(__AVX512F__)
constexpr int kQueries = 6, kWide = 4;
#else
constexpr int kQueries = 3, kWide = 2;
#endif
constexpr int kAhead = 2;        // blocks between the one that is read and the one that is fetched

int64_t block_offset(const Geometry& g, int64_t block, int64_t kv_head) {
  return ((block * g.layers + g.layer) * g.kv_heads + kv_head) * 2 * kBlockTokens * g.head_dim;
}

void rotate(float* head, const float* cos, const float* sin, int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float first = head[i], second = head[i + half];
    head[i] = first * cos[i] - second * sin[i];
    head[i + half] = second * cos[i] + first * sin[i];
  }
}

void normalise(float* head, const float* weight, float epsilon, int64_t width) {
  F32 squares = F32{};
  for (int64_t i = 0; i < width; i += kLanes) squares = fma(load(head + i), load(head + i), squares);
  const F32 factor = splat(1.0f / std::sqrt(sum_lanes(squares) / static_cast<float>(width) + epsilon));
  for (int64_t i = 0; i < width; i += kLanes) store(head + i, load(head + i) * factor * load(weight + i));
}

// What up to kQueries queries have gathered from the segments so far.
template <int count>
struct Gathered {
  float largest[count];
  float total[count];
  F32 output[count][kMaxVectors];
};

// What a query is multiplied with keys by, or a weight with values.
typedef Factors Query[kMaxVectors * kLanes / 2];
typedef Factors Weights[kSegment / 2];

template <int count>
MANTLER_INLINE void scores_of_block(const Geometry& g, const Query (&queries)[count], const uint16_t* keys,
                                    const uint16_t* later_keys, F32 (&scores)[count]) {
  // Two sums each, since an addition waits for the one before it.
  F32 even[count], odd[count];
  for (int q = 0; q < count; ++q) even[q] = odd[q] = F32{};
  for (int64_t i = 0; i < g.head_dim / 2; i += 2) {
    const uint16_t* at = keys + i * 2 * kBlockTokens;
    // Two cache lines each: the keys of a later block, and the values that this block's keys stand before.
    for (int line = 0; line < 2; ++line) {
      __builtin_prefetch(later_keys + (i + line) * 2 * kBlockTokens);
      __builtin_prefetch(at + line * 2 * kBlockTokens + g.head_dim * kBlockTokens);
    }
    const Pairs first = load_pairs(at), second = load_pairs(at + 2 * kBlockTokens);
    for (int q = 0; q < count; ++q) {
      even[q] = dot(queries[q][i], first, even[q]);
      odd[q] = dot(queries[q][i + 1], second, odd[q]);
    }
  }
  for (int q = 0; q < count; ++q) scores[q] = even[q] + odd[q];
}

// Sums of weighted values of one segment, `width` vectors of the head at a time.
template <int count, int width>
MANTLER_INLINE void weigh_values(const Geometry& g, const uint16_t* const* values, int64_t blocks,
                                 const Weights (&weights)[count], int64_t vector, const F32 (&factors)[count],
                                 Gathered<count>& gathered) {
  F32 sums[count][width];
  for (int q = 0; q < count; ++q)
    for (int v = 0; v < width; ++v) sums[q][v] = gathered.output[q][vector + v] * factors[q];
  for (int64_t block = 0; block < blocks; ++block) {
    const uint16_t* at = values[block] + vector * 2 * kLanes;
    for (int t = 0; t < kBlockTokens / 2; ++t) {
      Pairs value[width];
      for (int v = 0; v < width; ++v) value[v] = load_pairs(at + (t * g.head_dim + v * kLanes) * 2);
      for (int q = 0; q < count; ++q) {
        const Factors weight = weights[q][block * kBlockTokens / 2 + t];
        for (int v = 0; v < width; ++v) sums[q][v] = dot(weight, value[v], sums[q][v]);
      }
    }
  }
  for (int q = 0; q < count; ++q)
    for (int v = 0; v < width; ++v) gathered.output[q][vector + v] = sums[q][v];
}

template <int count>
void attend_queries(const Geometry& g, const float* const (&queries)[count], const int64_t (&positions)[count],
                    const int32_t* table, int64_t kv_head, const uint16_t* cache, float* const (&results)[count]) {
  const int64_t vectors = std::min<int64_t>(g.head_dim / kLanes, kMaxVectors);
  const int64_t last = positions[count - 1];  // positions never fall from one query to the next
  // A query that comes first sees the oldest keys; whole segments before them are left out for all.
  const int64_t oldest = g.window && positions[0] >= g.window ? positions[0] - g.window + 1 : 0;
  static const float numbers[kLanes] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const F32 lanes = load(numbers);
  const float nothing = -std::numeric_limits<float>::infinity();
  Gathered<count> gathered;
  for (int q = 0; q < count; ++q) {
    gathered.largest[q] = nothing;
    gathered.total[q] = 0.0f;
    for (int64_t v = 0; v < vectors; ++v) gathered.output[q][v] = F32{};
  }
  alignas(64) Query rounded[count];
  for (int q = 0; q < count; ++q)
    for (int64_t v = 0; v < vectors; ++v) store_factors(rounded[q] + v * kLanes / 2, load(queries[q] + v * kLanes));
  alignas(64) float scores[count][kSegment];
  alignas(64) Weights weights[count];
  for (int64_t segment = oldest / kSegment; segment * kSegment <= last; ++segment) {
    const int64_t start = segment * kSegment;
    const int64_t left = last + 1 - start;
    const int64_t blocks = left >= kSegment ? kSegmentBlocks : (left + kBlockTokens - 1) / kBlockTokens;
    const uint16_t* values[kSegmentBlocks];
    F32 largest[count];
    for (int q = 0; q < count; ++q) largest[q] = splat(nothing);
    for (int64_t block = 0; block < blocks; ++block) {
      const int64_t first = start + block * kBlockTokens;
      const uint16_t* keys = cache + block_offset(g, table[first / kBlockTokens], kv_head);
      values[block] = keys + kBlockTokens * g.head_dim;
      const int64_t later = first / kBlockTokens + kAhead;
      const bool is_there = later * kBlockTokens <= last;
      const uint16_t* later_keys = is_there ? cache + block_offset(g, table[later], kv_head) : keys;
      F32 of_block[count];
      scores_of_block<count>(g, rounded, keys, later_keys, of_block);
      for (int q = 0; q < count; ++q) {
        F32 score = of_block[q] * splat(g.scale);
        const F32 position = lanes + splat(static_cast<float>(first));
        if (first + kBlockTokens - 1 > positions[q])
          score = where_greater(position, splat(static_cast<float>(positions[q])), splat(nothing), score);
        if (g.window)
          score = where_greater(position, splat(static_cast<float>(positions[q] - g.window)), score, splat(nothing));
        store(scores[q] + block * kBlockTokens, score);
        largest[q] = max(largest[q], score);
      }
    }
    F32 factors[count];
    for (int q = 0; q < count; ++q) {
      const float before = gathered.largest[q], here = max_lanes(largest[q]);
      const float now = here > before ? here : before;
      // A segment of which the query sees nothing leaves weights of zero.
      const F32 shift = splat(now == nothing ? 0.0f : now);
      F32 total = F32{};
      for (int64_t block = 0; block < blocks; ++block) {
        const F32 weight = exp(load(scores[q] + block * kBlockTokens) - shift);
        store_factors(weights[q] + block * kBlockTokens / 2, weight);
        total += weight;
      }
      float factor[kLanes];
      store(factor, exp(splat(before) - shift));
      gathered.total[q] = gathered.total[q] * factor[0] + sum_lanes(total);
      gathered.largest[q] = now;
      factors[q] = splat(factor[0]);
    }
    int64_t vector = 0;
    for (; vector + kWide <= vectors; vector += kWide)
      weigh_values<count, kWide>(g, values, blocks, weights, vector, factors, gathered);
    for (; vector < vectors; ++vector) weigh_values<count, 1>(g, values, blocks, weights, vector, factors, gathered);
  }
  for (int q = 0; q < count; ++q) {
    const F32 inverse = splat(1.0f / gathered.total[q]);
    for (int64_t v = 0; v < vectors; ++v) store(results[q] + v * kLanes, gathered.output[q][v] * inverse);
  }
}

template <int count>
void attend_some(const Geometry& g, const float* qkv, const Place& place, int64_t first, int64_t kv_head,
                 const uint16_t* cache, float* result) {
  const float* queries[count];
  float* results[count];
  int64_t positions[count];
  for (int q = 0; q < count; ++q) {
    const int64_t row = (first + q) / g.group();
    const int64_t head = kv_head * g.group() + (first + q) % g.group();
    queries[q] = qkv + row * g.qkv_width() + head * g.head_dim;
    results[q] = result + (row * g.heads + head) * g.head_dim;
    positions[q] = place.position + row;
  }
  attend_queries<count>(g, queries, positions, place.blocks, kv_head, cache, results);
}

typedef void (*Attend)(const Geometry&, const float*, const Place&, int64_t, int64_t, const uint16_t*, float*);

template <int... counts>
Attend pick(int64_t count, std::integer_sequence<int, counts...>) {
  static const Attend some[] = {attend_some<counts + 1>...};
  return some[count - 1];
}

}  // namespace

void append(const Geometry& g, float* qkv, const Place& place, const float* cos, const float* sin, const float* q_norm,
            const float* k_norm, uint16_t* cache) {
  const int64_t half = g.head_dim / 2;
  cos += place.position * half;
  sin += place.position * half;
  for (int64_t head = 0; head < g.heads + g.kv_heads; ++head) {
    const float* norm = head < g.heads ? q_norm : k_norm;
    if (norm) normalise(qkv + head * g.head_dim, norm, g.epsilon, g.head_dim);
    rotate(qkv + head * g.head_dim, cos, sin, half);
  }
  const int64_t token = place.position % kBlockTokens;
  for (int64_t kv_head = 0; kv_head < g.kv_heads; ++kv_head) {
    uint16_t* keys = cache + block_offset(g, place.blocks[place.position / kBlockTokens], kv_head);
    uint16_t* values = keys + kBlockTokens * g.head_dim + token / 2 * 2 * g.head_dim + token % 2;
    const float* key = qkv + (g.heads + kv_head) * g.head_dim;
    const float* value = key + g.kv_heads * g.head_dim;
    // Rounded in loops of their own, which compilers turn into vectors.
    uint16_t rounded[kMaxVectors * kLanes];
    for (int64_t d = 0; d < g.head_dim; ++d) rounded[d] = float_to_bf16(key[d]);
    for (int64_t d = 0; d < g.head_dim; d += 2) std::memcpy(keys + (d * kBlockTokens + 2 * token), rounded + d, 4);
    for (int64_t d = 0; d < g.head_dim; ++d) rounded[d] = float_to_bf16(value[d]);
    for (int64_t d = 0; d < g.head_dim; ++d) values[2 * d] = rounded[d];
  }
}

void attend(const Geometry& g, const float* qkv, const Place& place, int64_t rows, int64_t kv_head,
            const uint16_t* cache, float* result) {
  const int64_t queries = rows * g.group();
  for (int64_t first = 0; first < queries; first += kQueries) {
    const int64_t count = queries - first < kQueries ? queries - first : kQueries;
    pick(count, std::make_integer_sequence<int, kQueries>())(g, qkv, place, first, kv_head, cache, result);
  }
}

}  // namespace MANTLER_ISA
