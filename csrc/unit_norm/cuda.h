// Launchers of the family's CUDA kernels: plain C, no torch, no CUDA header. Each returns a cudaError_t as an int.
#pragma once

#include <cstdint>

enum HkDtype : int { HK_FLOAT64 = 0, HK_FLOAT32 = 1, HK_BFLOAT16 = 2, HK_FLOAT16 = 3 };

extern "C" {

// y = x / max(|x|, eps), row by row. y may be x.
int hk_unit_norm_forward(const void* x,  // [rows, dim], on the stream's device, aligned to its elements
                         void* y,        // [rows, dim]
                         int64_t rows, int64_t dim,
                         double eps,  // at least 0
                         int dtype,   // an HkDtype, of every tensor
                         void* stream);

// dx = the derivative of the above in direction grad.
int hk_unit_norm_backward(const void* grad,  // [rows, dim]
                          const void* x,     // [rows, dim]
                          void* dx,          // [rows, dim], may be grad or x
                          int64_t rows, int64_t dim, double eps, int dtype, void* stream);
}
