// Grouped-query attention over a KV cache in blocks of 16 tokens.
//
// A block holds, for every layer and KV head, the keys and the values of its tokens in bf16; blocks are outermost, so
// that a sequence's memory is in few places. Neighbours that are multiplied together lie side by side: of keys two numbers
// of a head, [head_dim / 2][16 tokens][2], of values two tokens, [8][head_dim][2]:
//
//     cache [blocks][layers][kv_heads][2][16 * head_dim]
//
// A query sees the keys in segments of 256 tokens from the sequence's start. Each segment's softmax is taken by itself
// and joined to those before it, so a row's bits depend on its own sequence only: not on how many rows a step has, nor
// on how the prompt was cut.
#pragma once

#include "simd.h"

namespace MANTLER_ISA {

constexpr int kBlockTokens = 16;
constexpr int kSegmentBlocks = 16;

struct Geometry {
  int64_t heads, kv_heads, head_dim, layers, layer;
  int64_t window;  // keys that a query sees, its own included; 0: all
  int64_t cache_blocks, table_width;
  int64_t rope_positions;
  float scale;
  float epsilon;

  int64_t group() const { return heads / kv_heads; }
  int64_t qkv_width() const { return (heads + 2 * kv_heads) * head_dim; }
};

// One packed row: its sequence's blocks and its position there.
struct Place {
  const int32_t* blocks;
  int64_t position;
};

// Rotates the queries of one row in place and writes its keys and values to the cache. `q_norm` and `k_norm` are the
// weights of a norm over each head, or null.
void append(const Geometry& geometry, float* qkv, const Place& place, const float* cos, const float* sin,
            const float* q_norm, const float* k_norm, uint16_t* cache);

// Attention of rows [0, rows) that follow one another in one sequence, for one KV head. `qkv` and `result` start at
// the first row, `place` is its place.
void attend(const Geometry& geometry, const float* qkv, const Place& place, int64_t rows, int64_t kv_head,
            const uint16_t* cache, float* result);

}  // namespace MANTLER_ISA
