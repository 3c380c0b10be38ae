// The fused kernels with quantised outputs. Apart, because the header of fp8 takes time to compile.
#pragma once

#include "warploom/pack_fp8.cuh"

#include "warploom/comm/fusion.cuh"
