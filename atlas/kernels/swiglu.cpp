// y = silu(x1) x2 of rows [x1, x2], and its gradient.

#include "matrix.h"

using namespace atlas;

extern "C" {

struct SwigluSizes {
    Index threads, rows, width;  // N, and the width of y
};

}  // extern "C"

// in: x [N, 2 width]; to: out [N, width]
extern "C" int atlas_swiglu_forward(const SwigluSizes* sizes, const Tensor* in, const Tensor* to) {
    const SwigluSizes s = *sizes;
    const float* x = in[0].data;
    float* out = to[0].data;
    return for_rows(s.rows, s.threads, [=](Index n) {
        const float *gate = x + 2 * n * s.width, *linear = gate + s.width;
        for (Index i = 0; i < s.width; i += 8) {
            const Eight a = load<Eight>(gate + i);
            store(out + n * s.width + i, a * sigmoid(a) * load<Eight>(linear + i));
        }
    });
}

// in: x, d_out; to: d_x [N, 2 width]
extern "C" int atlas_swiglu_backward(const SwigluSizes* sizes, const Tensor* in, const Tensor* to) {
    const SwigluSizes s = *sizes;
    const float *x = in[0].data, *given = in[1].data;
    float* d_x = to[0].data;
    return for_rows(s.rows, s.threads, [=](Index n) {
        const float *gate = x + 2 * n * s.width, *linear = gate + s.width, *g = given + n * s.width;
        float *d_gate = d_x + 2 * n * s.width, *d_linear = d_gate + s.width;
        for (Index i = 0; i < s.width; i += 8) {
            const Eight a = load<Eight>(gate + i), sigma = sigmoid(a), silu = a * sigma, d = load<Eight>(g + i);
            store(d_linear + i, d * silu);
            store(d_gate + i, d * load<Eight>(linear + i) * (sigma + silu * (1.0f - sigma)));
        }
    });
}
