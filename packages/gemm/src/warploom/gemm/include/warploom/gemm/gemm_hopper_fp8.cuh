// gemm_hopper.cuh for operands or outputs of type e4m3, whose header takes time to compile.
#pragma once

#include "warploom/convert_fp8.cuh"
#include "warploom/wgmma_fp8.cuh"

#include "warploom/gemm/gemm_hopper.cuh"
