// Linear layers over packed rows, with weights in blocks of 32 inputs.
//
// A weight is w = d * q + m with whole numbers q of 4 or 8 bits and, per output and block, d and m in fp16. Eight-bit
// weights are symmetric: m = -128 d. Activations are rounded to 8 bits with a scale per row and block, so
//
//     sum of w a  =  sum over blocks of  d * scale * (sum of q * rounded a)  +  m * scale * (sum of rounded a)
//
// where the inner sums are exact whole numbers. A row's result depends on that row only, bit for bit.
//
// Layout of a weight: panels of 16 outputs; in a panel one record per block: 16 d, 16 m (only with 4 bits), then the
// whole numbers as [8 groups][16 outputs][4 inputs]. With 4 bits, groups 2i and 2i + 1 share bytes: low and high half.
// fp32 weights are [panel][input][16 outputs].
#pragma once

#include "simd.h"

#include <vector>

namespace MANTLER_ISA {

constexpr int kBlock = 32;
constexpr int kGroups = kBlock / 4;
constexpr int kTile = 16;  // rows that share one pass over a panel

enum class Format { kInt4, kInt8, kFloat };

constexpr size_t record_bytes(Format format) {
  return format == Format::kInt4 ? 4 * kLanes + kBlock * kLanes / 2
         : format == Format::kInt8 ? 2 * kLanes + kBlock * kLanes
                                   : 4 * kBlock * kLanes;
}

// Rows made ready for the integer products: [tile][block][row of the tile].
struct Rows {
  std::vector<int8_t> bytes;    // 32 each
  std::vector<float> scales;    // scale of the block
  std::vector<float> totals;    // scale * sum of the bytes
  std::vector<int32_t> wholes;  // sum of the bytes
  std::vector<float> floats;    // instead of all these for fp32 weights: [tile][input][row of the tile]

  void resize(Format format, int64_t rows, int64_t blocks) {
    const size_t places = static_cast<size_t>((rows + kTile - 1) / kTile * kTile * blocks);
    if (format == Format::kFloat) {
      grow(floats, places * kBlock);
    } else {
      grow(bytes, places * kBlock);
      grow(scales, places);
      grow(totals, places);
      grow(wholes, places);
    }
  }

 private:
  template <typename T>
  static void grow(std::vector<T>& vector, size_t size) {
    if (vector.size() < size) vector.resize(size);
  }
};

// Writes one row, normalised to unit RMS and times `norm` where that is given. `width` may end within a block.
void prepare_row(Format format, const float* row, const float* norm, float epsilon, int64_t width, int64_t place,
                 Rows& rows);

// What happens to the sums of one panel before they are stored.
struct Epilogue {
  const float* bias = nullptr;      // per output
  const float* residual = nullptr;  // per row and output
  bool gated = false;               // outputs 2i and 2i + 1 of the panels become silu(first) * second
};

// Rows [tile * 16, ...) of `count` rows times panels [first, last) of `weight`, whose outputs are `outputs` in number.
void multiply(Format format, const Rows& rows, int64_t tile, int64_t count, const uint8_t* weight, int64_t blocks,
              int64_t first, int64_t last, int64_t outputs, const Epilogue& epilogue, float* result);

}  // namespace MANTLER_ISA
