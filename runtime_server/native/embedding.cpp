#include "embedding.h"

namespace MANTLER_ISA {

void embed(Format format, const uint8_t* weight, int64_t index, int64_t width, float* result) {
  const int64_t blocks = (width + kBlock - 1) / kBlock;
  const size_t bytes = record_bytes(format);
  const uint8_t* panel = weight + static_cast<size_t>(index / kLanes * blocks) * bytes;
  const int64_t lane = index % kLanes;
  for (int64_t i = 0; i < width; ++i) {
    const uint8_t* record = panel + static_cast<size_t>(i / kBlock) * bytes;
    const int64_t within = i % kBlock, group = within / 4;
    if (format == Format::kFloat) {
      std::memcpy(result + i, record + 4 * (within * kLanes + lane), 4);
      continue;
    }
    uint16_t d;
    std::memcpy(&d, record + 2 * lane, 2);
    const float scale = half_to_float(d);
    if (format == Format::kInt8) {
      const uint8_t q = record[2 * kLanes + group * 64 + lane * 4 + within % 4];
      result[i] = scale * (static_cast<float>(q) - 128.0f);
    } else {
      uint16_t m;
      std::memcpy(&m, record + 2 * kLanes + 2 * lane, 2);
      const uint8_t pair = record[4 * kLanes + group / 2 * 64 + lane * 4 + within % 4];
      result[i] = scale * static_cast<float>(group % 2 ? pair >> 4 : pair & 15) + half_to_float(m);
    }
  }
}

}  // namespace MANTLER_ISA
