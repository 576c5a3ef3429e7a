// What the processor that runs this can do. Compilers have builtins for the question, but not all link what they need.
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>

#include <cstdint>
#include <initializer_list>

namespace processor {

struct Registers {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

inline Registers cpuid(uint32_t leaf, uint32_t part) {
  Registers r;
  __get_cpuid_count(leaf, part, &r.eax, &r.ebx, &r.ecx, &r.edx);
  return r;
}

inline bool has(uint32_t bits, std::initializer_list<int> wanted) {
  for (int bit : wanted)
    if (!(bits >> bit & 1)) return false;
  return true;
}

// Whether the operating system keeps the registers that `states` names when it switches threads.
inline bool keeps(uint32_t states) {
  if (!has(cpuid(1, 0).ecx, {27})) return false;  // xgetbv may be asked
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & states) == states;
}

// AVX2, FMA and F16C.
inline bool has_avx2() { return keeps(0x6) && has(cpuid(1, 0).ecx, {12, 28, 29}) && has(cpuid(7, 0).ebx, {5}); }

// AVX-512 F, DQ, BW, VL and VNNI.
inline bool has_avx512_vnni() {
  const Registers r = cpuid(7, 0);
  return has_avx2() && keeps(0xe6) && has(r.ebx, {16, 17, 30, 31}) && has(r.ecx, {11});
}

// The product of pairs of bf16, too.
inline bool has_avx512_bf16() { return has_avx512_vnni() && has(cpuid(7, 1).eax, {5}); }

}  // namespace processor
#endif
