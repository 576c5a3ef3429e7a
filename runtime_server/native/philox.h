// Philox4x32-10, a counter-based random number generator.
//
// Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011. The number at a place is a
// function of a key and a counter, with no state in between. Keyed by a request's seed and counted by choice and
// position, a request draws the same numbers whatever else is in the batch and wherever it is resumed.
#pragma once

#include <cstdint>

namespace philox {

// In [0, 1), with 53 random bits.
inline double uniform(uint64_t seed, uint32_t choice, uint32_t position) {
  uint32_t counter[4] = {position, choice, 0, 0};
  uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t first = uint64_t{0xD2511F53} * counter[0], second = uint64_t{0xCD9E8D57} * counter[2];
    counter[0] = static_cast<uint32_t>(second >> 32) ^ counter[1] ^ key[0];
    counter[2] = static_cast<uint32_t>(first >> 32) ^ counter[3] ^ key[1];
    counter[1] = static_cast<uint32_t>(second);
    counter[3] = static_cast<uint32_t>(first);
    key[0] += 0x9E3779B9;
    key[1] += 0xBB67AE85;
  }
  return static_cast<double>(uint64_t{counter[0]} << 21 | counter[1] >> 11) * 0x1p-53;
}

}  // namespace philox
