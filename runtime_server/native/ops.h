// The custom operators of the domain "mantler". Their sources are compiled once per instruction set; register.cpp picks.
#pragma once

#include "ort_abi.h"

namespace MANTLER_ISA {

const ort::CustomOp* linear_op();
const ort::CustomOp* attention_op();
const ort::CustomOp* embedding_op();

}  // namespace MANTLER_ISA
