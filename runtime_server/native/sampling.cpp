#include "sampling.h"

#include <algorithm>
#include <functional>
#include <iterator>
#include <limits>
#include <vector>

#include "philox.h"
#include "simd.h"

namespace MANTLER_ISA {
namespace {

constexpr int kTokens = 256;  // of a block
constexpr float kNothing = -std::numeric_limits<float>::infinity();
// How far below the likeliest token those lie that are sorted, in natural logarithms of weight. Mostly the first will do.
constexpr float kDepths[] = {6, 10, 15, 22, 33, std::numeric_limits<float>::infinity()};

struct Block {
  float peak;  // minus infinity where no token can be drawn
  float sum;   // of the tokens' weights, in units of the peak's
};

// A block's logits, and minus infinity where a token may not be drawn, is no number or does not exist.
struct Tokens {
  float logits[kTokens];

  Tokens(const float* row, int64_t vocab_size, const uint8_t* allowed, int64_t block) {
    const int64_t first = block * kTokens;
    const int count = static_cast<int>(std::min<int64_t>(kTokens, vocab_size - first));
    const float* from = row + first;
    if (count < kTokens) {
      std::fill(logits, logits + kTokens, kNothing);
      std::copy(from, from + count, logits);
      from = logits;
    }
    const F32 nothing = splat(kNothing);
    for (int i = 0; i < kTokens; i += kLanes) {
      F32 some = max(load(from + i), nothing);
      if (allowed) some = where_bits(bits(allowed + (first + i) / 8, count - i), some, nothing);
      store(logits + i, some);
    }
  }

  float peak() const {
    F32 most = load(logits);
    for (int i = kLanes; i < kTokens; i += kLanes) most = max(load(logits + i), most);
    return max_lanes(most);
  }

  // In place: the weights in units of that of `peak`.
  void weigh(float peak, float scale) {
    for (int i = 0; i < kTokens; i += kLanes) store(logits + i, exp((load(logits + i) - splat(peak)) * splat(scale)));
  }

 private:
  // Sixteen bits, of which the first `left` are there.
  static uint32_t bits(const uint8_t* from, int left) {
    return (left > 0 ? from[0] : 0u) | (left > 8 ? from[1] << 8 : 0u);
  }
};

// Memory that one row after the other uses.
struct Scratch {
  std::vector<Block> blocks;
  std::vector<uint64_t> keys;
  std::vector<double> sums;
};

class Sampler {
 public:
  Sampler(const float* logits, int64_t vocab_size, const sampling::Row& row, Scratch& scratch)
      : logits_(logits), vocab_size_(vocab_size), row_(row), scratch_(scratch) {}

  int64_t token() {
    const bool cut = row_.top_k > 0 || row_.top_p < 1 || row_.min_p > 0;
    // The nucleus is a share of what top_k leaves, where that is given.
    read_blocks(row_.scale > 0 && row_.top_k == 0 && (row_.top_p < 1 || !cut));
    // With nothing to draw from, the first token that is allowed at all will do.
    if (!(peak_ > kNothing) || peak_ == -kNothing || row_.scale == 0) return likeliest();
    const double number = philox::uniform(row_.seed, row_.choice, row_.position);
    return cut ? draw_from_few(number) : draw_from_all(number);
  }

 private:
  Tokens tokens(int64_t block) const { return Tokens(logits_, vocab_size_, row_.allowed, block); }

  void read_blocks(bool with_sums) {
    for (size_t i = 0; i < blocks_.size(); ++i) {
      Tokens some = tokens(static_cast<int64_t>(i));
      blocks_[i] = {some.peak(), 0};
      peak_ = std::max(peak_, blocks_[i].peak);
      if (!with_sums || blocks_[i].peak == kNothing) continue;
      some.weigh(blocks_[i].peak, row_.scale);
      F32 sum = load(some.logits);
      for (int j = kLanes; j < kTokens; j += kLanes) sum += load(some.logits + j);
      blocks_[i].sum = sum_lanes(sum);
    }
  }

  // In units of the likeliest token's weight.
  double mass(const Block& block) const {
    return block.sum * std::exp((static_cast<double>(block.peak) - peak_) * row_.scale);
  }

  double mass() const {
    double all = 0;
    for (const Block& block : blocks_) all += block.peak == kNothing ? 0 : mass(block);
    return all;
  }

  int64_t likeliest() const {
    int64_t block = 0;
    while (blocks_[static_cast<size_t>(block)].peak != peak_) ++block;
    const Tokens some = tokens(block);
    const int64_t first = std::find(some.logits, some.logits + kTokens, peak_) - some.logits + block * kTokens;
    if (peak_ > kNothing || !row_.allowed) return first;
    for (int64_t id = 0; id < vocab_size_; ++id)
      if (row_.allowed[id / 8] >> id % 8 & 1) return id;
    return first;
  }

  // The tokens follow each other by id.
  int64_t draw_from_all(double number) const {
    double rest = number * mass();
    int64_t chosen = -1;  // the last with weight, where rounding carries the place to the very end
    for (size_t i = 0; i < blocks_.size(); ++i) {
      if (blocks_[i].peak == kNothing) continue;
      const double weight = mass(blocks_[i]);
      if (weight > 0) chosen = static_cast<int64_t>(i);
      if (rest < weight) break;
      rest -= weight;
    }
    Tokens some = tokens(chosen);
    some.weigh(blocks_[chosen].peak, row_.scale);
    rest /= mass(blocks_[chosen]) / blocks_[chosen].sum;
    int64_t token = 0;
    for (int i = 0; i < kTokens; ++i) {
      if (some.logits[i] > 0) token = i;
      if (rest < some.logits[i]) break;
      rest -= some.logits[i];
    }
    return chosen * kTokens + token;
  }

  // The tokens follow each other by weight, equal ones by id.
  int64_t draw_from_few(double number) {
    const double all = row_.top_k == 0 && row_.top_p < 1 ? mass() : 0;
    size_t count = 0;
    for (const float depth : kDepths) {
      const bool every = depth == kDepths[std::size(kDepths) - 1];
      collect(std::max(peak_ - depth / row_.scale, -std::numeric_limits<float>::max()));
      const size_t top_k = static_cast<size_t>(row_.top_k);
      if (!every && keys_.size() < top_k) continue;
      if (top_k > 0 && top_k < keys_.size()) {
        std::nth_element(keys_.begin(), keys_.begin() + row_.top_k, keys_.end(), std::greater<>());
        keys_.resize(top_k);
      }
      std::sort(keys_.begin(), keys_.end(), std::greater<>());
      count = cut(top_k > 0 ? 0 : all);
      // Tokens further below may stay as well, where all of these do.
      if (count < keys_.size() || top_k > 0 || every) break;
    }
    const auto begin = sums_.begin(), end = begin + static_cast<int64_t>(count);
    // Rounding can carry the place to the very end, and a token without weight must not be drawn.
    const auto last = std::lower_bound(begin, end, end[-1]);
    return id(std::min(std::upper_bound(begin, end, number * end[-1]), last) - begin);
  }

  // The tokens whose logit is at least `least`, as numbers that sort by logit, then by falling id.
  void collect(float least) {
    keys_.clear();
    for (size_t i = 0; i < blocks_.size(); ++i) {
      if (blocks_[i].peak < least) continue;
      const int64_t block = static_cast<int64_t>(i);
      const Tokens some = tokens(block);
      for (int j = 0; j < kTokens; j += kLanes)
        for (uint32_t left = not_less(load(some.logits + j), splat(least)); left != 0; left &= left - 1) {
          const int at = j + __builtin_ctz(left);
          keys_.push_back(key(some.logits[at], block * kTokens + at));
        }
    }
  }

  static uint64_t key(float logit, int64_t id) {
    logit += 0.0f;  // 0 and -0 are equal
    uint32_t bits;
    std::memcpy(&bits, &logit, sizeof bits);
    bits ^= bits >> 31 ? 0xffffffff : 0x80000000;
    return uint64_t{bits} << 32 | static_cast<uint32_t>(0xffffffff - id);
  }

  int64_t id(int64_t place) const { return 0xffffffff - static_cast<int64_t>(keys_[static_cast<size_t>(place)] & 0xffffffff); }

  // How many of the sorted tokens top_p and min_p leave, at least 1, and the sums of weights up to each. The nucleus is a
  // share of `all`, or of these tokens where that is 0.
  size_t cut(double all) {
    sums_.clear();
    double sum = 0;
    size_t heavy = 0;
    for (size_t i = 0; i < keys_.size(); ++i) {
      const float weight = std::exp((logits_[id(static_cast<int64_t>(i))] - peak_) * row_.scale);
      heavy += weight >= row_.min_p;
      sums_.push_back(sum += weight);
    }
    size_t nucleus = keys_.size();
    if (row_.top_p < 1) {
      const double share = row_.top_p * (all > 0 ? all : sum);
      nucleus = static_cast<size_t>(std::lower_bound(sums_.begin(), sums_.end(), share) - sums_.begin()) + 1;
    }
    return std::max<size_t>(1, std::min({nucleus, heavy, keys_.size()}));
  }

  const float* logits_;
  const int64_t vocab_size_;
  const sampling::Row& row_;
  Scratch& scratch_;
  std::vector<Block>& blocks_ = scratch_.blocks;
  std::vector<uint64_t>& keys_ = scratch_.keys;
  std::vector<double>& sums_ = scratch_.sums;
  float peak_ = kNothing;
};

}  // namespace

void sample(const float* logits, int64_t rows, int64_t vocab_size, const sampling::Row* row, int64_t* tokens) {
  Scratch scratch;
  scratch.blocks.resize(static_cast<size_t>((vocab_size + kTokens - 1) / kTokens));
  for (int64_t i = 0; i < rows; ++i) tokens[i] = Sampler(logits + i * vocab_size, vocab_size, row[i], scratch).token();
}

}  // namespace MANTLER_ISA
