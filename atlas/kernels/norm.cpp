// y = w x / sqrt(mean(x^2) + epsilon) over the last dimension, and its gradients.

#include "matrix.h"

using namespace atlas;

extern "C" {

struct NormSizes {
    Index rows, width, block, threads;
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

// x, out [N, width], inverse [N]
extern "C" void atlas_norm_forward(const NormSizes* sizes, const float* x, const float* weight, float* out, float* inverse) {
    const NormSizes s = *sizes;
#pragma omp parallel for num_threads(s.threads) schedule(static)
    for (Index n = 0; n < s.rows; ++n) forward_row(s, x + n * s.width, weight, out + n * s.width, inverse + n);
}

// d_weight [blocks, width]: a block of rows sums up its own, so that the result does not depend on the threads.
extern "C" void atlas_norm_backward(
    const NormSizes* sizes, const float* x, const float* weight, const float* inverse, const float* given, float* d_x,
    float* d_weight
) {
    const NormSizes s = *sizes;
#pragma omp parallel for num_threads(s.threads) schedule(static)
    for (Index b = 0; b < s.blocks(); ++b) {
        float* own = d_weight + b * s.width;
        std::fill_n(own, s.width, 0.0f);
        for (Index n = b * s.block; n < std::min((b + 1) * s.block, s.rows); ++n) {
            const Index at = n * s.width;
            backward_row(s, x + at, weight, inverse[n], given + at, d_x + at, own);
        }
    }
}
