#pragma once

#include <vector>

#include "ort_abi.h"

namespace MANTLER_ISA {

std::vector<const ort::CustomOp*> ops();

}  // namespace MANTLER_ISA
