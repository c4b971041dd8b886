// y = silu(x1) x2 of rows [x1, x2], and its gradient.

#include "matrix.h"

using namespace atlas;

extern "C" {

struct SwigluSizes {
    Index rows, width, threads;  // N, and the width of y
};

}  // extern "C"

// x [N, 2 width], out [N, width]
extern "C" void atlas_swiglu_forward(const SwigluSizes* sizes, const float* x, float* out) {
    const SwigluSizes s = *sizes;
#pragma omp parallel for num_threads(s.threads) schedule(static)
    for (Index n = 0; n < s.rows; ++n) {
        const float *gate = x + 2 * n * s.width, *linear = gate + s.width;
        for (Index i = 0; i < s.width; i += 8) {
            const Eight a = load<Eight>(gate + i);
            store(out + n * s.width + i, a * sigmoid(a) * load<Eight>(linear + i));
        }
    }
}

extern "C" void atlas_swiglu_backward(const SwigluSizes* sizes, const float* x, const float* given, float* d_x) {
    const SwigluSizes s = *sizes;
#pragma omp parallel for num_threads(s.threads) schedule(static)
    for (Index n = 0; n < s.rows; ++n) {
        const float *gate = x + 2 * n * s.width, *linear = gate + s.width, *g = given + n * s.width;
        float *d_gate = d_x + 2 * n * s.width, *d_linear = d_gate + s.width;
        for (Index i = 0; i < s.width; i += 8) {
            const Eight a = load<Eight>(gate + i), sigma = sigmoid(a), silu = a * sigma, d = load<Eight>(g + i);
            store(d_linear + i, d * silu);
            store(d_gate + i, d * load<Eight>(linear + i) * (sigma + silu * (1.0f - sigma)));
        }
    }
}
