// attention.cuh with keys and values of 8 bits.
#pragma once

#include "warploom/attention/operands_fp8.cuh"

#include "warploom/attention/attention.cuh"
