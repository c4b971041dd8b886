// y = w x / sqrt(mean(x^2) + epsilon) over the last dimension, and its gradients.

#include "matrix.h"

using namespace atlas;

extern "C" {

struct NormSizes {
    Index threads, rows, width, block;
    double epsilon;
    Index blocks() const { return (rows + block - 1) / block; }
};

}  // extern "C"

namespace {

void forward_row(const NormSizes& s, const float* x, const float* weight, float* out, float* inverse) {
    const double mean = static_cast<double>(dot(x, x, s.width)) / s.width;
    *inverse = static_cast<float>(1.0 / std::sqrt(mean + s.epsilon));
    for (Index i = 0; i < s.width; i += 8) store(out + i, load<Eight>(x + i) * *inverse * load<Eight>(weight + i));
}

// n = x / rms, g = w dy:   dx = (g - n mean(n g)) / rms,   dw += n dy
void backward_row(
    const NormSizes& s, const float* x, const float* weight, float inverse, const float* given, float* d_x, float* d_weight
) {
    Eight products{};
    for (Index i = 0; i < s.width; i += 8) {
        const Eight normal = load<Eight>(x + i) * inverse, along = normal * load<Eight>(given + i);
        products += along * load<Eight>(weight + i);
        store(d_weight + i, load<Eight>(d_weight + i) + along);
    }
    const float share = total(products) / static_cast<float>(s.width);
    for (Index i = 0; i < s.width; i += 8) {
        const Eight normal = load<Eight>(x + i) * inverse;
        store(d_x + i, inverse * (load<Eight>(given + i) * load<Eight>(weight + i) - normal * share));
    }
}

}  // namespace

// in: x [N, width], weight [width]; to: out [N, width], inverse [N]
extern "C" int atlas_norm_forward(const NormSizes* sizes, const Tensor* in, const Tensor* to) {
    const NormSizes s = *sizes;
    const float *x = in[0].data, *weight = in[1].data;
    float *out = to[0].data, *inverse = to[1].data;
    return for_rows(s.rows, s.threads, [=](Index n) {
        forward_row(s, x + n * s.width, weight, out + n * s.width, inverse + n);
    });
}

// in: x, weight, inverse, d_out; to: d_x [N, width], d_weight [blocks, width]. A block of rows sums up its own d_weight,
// so that the result does not depend on the threads.
extern "C" int atlas_norm_backward(const NormSizes* sizes, const Tensor* in, const Tensor* to) {
    const NormSizes s = *sizes;
    const float *x = in[0].data, *weight = in[1].data, *inverse = in[2].data, *given = in[3].data;
    float *d_x = to[0].data, *d_weight = to[1].data;
    return for_rows(s.blocks(), s.threads, [=](Index b) {
        float* own = d_weight + b * s.width;
        std::fill_n(own, s.width, 0.0f);
        for (Index n = b * s.block; n < std::min((b + 1) * s.block, s.rows); ++n) {
            const Index at = n * s.width;
            backward_row(s, x + at, weight, inverse[n], given + at, d_x + at, own);
        }
    });
}
