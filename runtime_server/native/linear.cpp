#include "linear.h"

#include <utility>

#include "block.h"

namespace MANTLER_ISA {
namespace {

// With many rows a weight is read more slowly than the processor's own fetching ahead expects, which then stops at the
// end of each page.
constexpr int kFetchRows = 6;
constexpr size_t kAhead = 4096;

// The sums of `count` rows of a tile, from `from` on, and one panel.
template <Format format, int count>
MANTLER_INLINE void panel(const Rows& rows, int64_t tile, int64_t from, const uint8_t* weight, int64_t blocks,
                          F32 (&sums)[count]) {
  for (int r = 0; r < count; ++r) sums[r] = F32{};
  const int64_t start = tile * blocks * kTile;
  for (int64_t block = 0; block < blocks; ++block) {
    const uint8_t* at = weight + block * record_bytes(format);
    if constexpr (format == Format::kFloat) {
      const float* inputs = rows.floats.data() + (start + block * kTile) * kBlock + from;
      for (int i = 0; i < kBlock; ++i) {
        const F32 w = load(reinterpret_cast<const float*>(at) + i * kLanes);
        for (int r = 0; r < count; ++r) sums[r] = fma(splat(inputs[i * kTile + r]), w, sums[r]);
      }
    } else {
      if constexpr (count >= kFetchRows)
        for (size_t line = 0; line < record_bytes(format); line += 64) __builtin_prefetch(at + kAhead + line);
      const int64_t place = start + block * kTile + from;
      const Inputs inputs = {rows.bytes.data() + place * kBlock, rows.scales.data() + place, rows.totals.data() + place,
                             rows.wholes.data() + place};
      add_block<format, count>(at, inputs, sums);
    }
  }
}

void store_part(float* to, F32 value, int64_t lanes) {
  float all[kLanes];
  store(all, value);
  std::memcpy(to, all, static_cast<size_t>(lanes) * sizeof(float));
}

F32 load_part(const float* from, int64_t lanes) {
  float all[kLanes] = {};
  std::memcpy(all, from, static_cast<size_t>(lanes) * sizeof(float));
  return load(all);
}

template <Format format, int count>
void run(const Rows& rows, int64_t tile, int64_t from, const uint8_t* weight, int64_t blocks, int64_t first, int64_t last,
         int64_t outputs, const Epilogue& epilogue, float* result) {
  const size_t panel_bytes = static_cast<size_t>(blocks) * record_bytes(format);
  for (int64_t p = first; p < last; p += epilogue.gated ? 2 : 1) {
    F32 sums[count];
    panel<format, count>(rows, tile, from, weight + static_cast<size_t>(p) * panel_bytes, blocks, sums);
    if (epilogue.gated) {
      F32 up[count];
      panel<format, count>(rows, tile, from, weight + static_cast<size_t>(p + 1) * panel_bytes, blocks, up);
      for (int r = 0; r < count; ++r) sums[r] = sums[r] / (splat(1.0f) + exp(-sums[r])) * up[r];
    }
    const int64_t width = epilogue.gated ? outputs / 2 : outputs;
    const int64_t column = (epilogue.gated ? p / 2 : p) * kLanes;
    const int64_t lanes = width - column < kLanes ? width - column : kLanes;
    for (int r = 0; r < count; ++r) {
      const int64_t place = (tile * kTile + from + r) * width + column;
      F32 value = sums[r];
      if (lanes == kLanes) {
        if (epilogue.bias) value += load(epilogue.bias + column);
        if (epilogue.residual) value += load(epilogue.residual + place);
        store(result + place, value);
      } else {
        if (epilogue.bias) value += load_part(epilogue.bias + column, lanes);
        if (epilogue.residual) value += load_part(epilogue.residual + place, lanes);
        store_part(result + place, value, lanes);
      }
    }
  }
}

// Whole numbers from -127 to 127 as bytes.
void narrow(const I32& whole, int8_t* to) {
#if defined(__AVX512F__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(whole)));
#else
  int32_t numbers[kLanes];
  std::memcpy(numbers, &whole, sizeof numbers);
  for (int i = 0; i < kLanes; ++i) to[i] = static_cast<int8_t>(numbers[i]);
#endif
}

typedef void (*Run)(const Rows&, int64_t, int64_t, const uint8_t*, int64_t, int64_t, int64_t, int64_t, const Epilogue&, float*);

template <Format format, int... counts>
Run pick(int64_t count, std::integer_sequence<int, counts...>) {
  static const Run runs[] = {run<format, counts + 1>...};
  return runs[count - 1];
}

}  // namespace

void prepare_row(Format format, const float* row, const float* norm, float epsilon, int64_t width, int64_t place,
                 Rows& rows) {
  const int64_t blocks = (width + kBlock - 1) / kBlock;
  float factor = 1.0f;
  if (norm) {
    F32 squares = F32{};
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) squares = fma(load(row + i), load(row + i), squares);
    if (i < width) {
      const F32 rest = load_part(row + i, width - i);
      squares = fma(rest, rest, squares);
    }
    factor = 1.0f / std::sqrt(sum_lanes(squares) / static_cast<float>(width) + epsilon);
  }
  const int64_t tile = place / kTile, within = place % kTile;
  for (int64_t block = 0; block < blocks; ++block) {
    F32 halves[2];
    for (int h = 0; h < 2; ++h) {
      const int64_t from = block * kBlock + h * kLanes;
      const int64_t lanes = width - from < kLanes ? (width > from ? width - from : 0) : kLanes;
      halves[h] = lanes == kLanes ? load(row + from) : load_part(row + from, lanes);
      if (norm) halves[h] *= splat(factor) * (lanes == kLanes ? load(norm + from) : load_part(norm + from, lanes));
    }
    const int64_t at = (tile * blocks + block) * kTile + within;
    if (format == Format::kFloat) {
      float values[kBlock];
      store(values, halves[0]);
      store(values + kLanes, halves[1]);
      float* to = rows.floats.data() + (tile * blocks + block) * kTile * kBlock + within;
      for (int i = 0; i < kBlock; ++i) to[i * kTile] = values[i];
      continue;
    }
    const F32 largest = max(max(halves[0], -halves[0]), max(halves[1], -halves[1]));
    const float scale = max_lanes(largest) / 127.0f;
    const F32 inverse = splat(scale > 0.0f ? 1.0f / scale : 0.0f);
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest whole number.
    const F32 magic = splat(12582912.0f);
    int8_t* bytes = rows.bytes.data() + at * kBlock;
    I32 both = I32{};
    for (int h = 0; h < 2; ++h) {
      const I32 whole = to_whole(fma(halves[h], inverse, magic) - magic);
      both += whole;
      narrow(whole, bytes + h * kLanes);
    }
    const float total = sum_lanes(to_float(both));
    rows.scales[static_cast<size_t>(at)] = scale;
    rows.totals[static_cast<size_t>(at)] = scale * total;
    rows.wholes[static_cast<size_t>(at)] = static_cast<int32_t>(total);
  }
}

void multiply(Format format, const Rows& rows, int64_t tile, int64_t count, const uint8_t* weight, int64_t blocks,
              int64_t first, int64_t last, int64_t outputs, const Epilogue& epilogue, float* result) {
  const auto upto = std::make_integer_sequence<int, kPass>();
  for (int64_t from = 0; from < count; from += kPass) {
    const int64_t some = count - from < kPass ? count - from : kPass;
    const Run run = format == Format::kInt4   ? pick<Format::kInt4>(some, upto)
                    : format == Format::kInt8 ? pick<Format::kInt8>(some, upto)
                                              : pick<Format::kFloat>(some, upto);
    run(rows, tile, from, weight, blocks, first, last, outputs, epilogue, result);
  }
}

}  // namespace MANTLER_ISA
