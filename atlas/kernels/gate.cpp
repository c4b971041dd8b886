// The gated branch of a block, and its gradients. The same function as atlas/ops/gated_branch/torch.py.

#include "matrix.h"

using namespace atlas;

extern "C" {

struct GateSizes {
    Index threads, rows, width, block, adds;  // adds: 1 for (a + l) g, 0 for a g
    double limit;                             // of the sharpness: from there on d_gate does not count
    Index blocks() const { return (rows + block - 1) / block; }
};

}  // extern "C"

namespace {

// Exactly 0 where the exponential ends: a closed gate lets nothing through.
inline Eight gate_of(Eight x) { return x < Eight{} - 87.0f ? Eight{} : sigmoid(x); }

template <bool ADDS>
void forward_row(Index width, const float* a, const float* l, const float* bias, float sharpness, float* out, float* gate) {
    for (Index i = 0; i < width; i += 8) {
        const Eight linear = load<Eight>(l + i), branch = load<Eight>(a + i);
        const Eight g = gate_of(sharpness * (linear + load<Eight>(bias + i)));
        store(gate + i, g);
        store(out + i, (ADDS ? branch + linear : branch) * g);
    }
}

struct Row {
    const float *a, *l, *gate, *d_out, *d_gate;  // d_gate: null without a gradient
    float *d_a, *d_l;
};

// z = l + b, u = s z:   du = dy (a + l) g',   db += s du,   ds += z (du + d_gate g');   returns this row's ds
template <bool ADDS>
float backward_row(Index width, const Row& r, const float* bias, float sharpness, float* d_bias) {
    Eight d_sharpness{};
    for (Index i = 0; i < width; i += 8) {
        const Eight linear = load<Eight>(r.l + i), branch = load<Eight>(r.a + i), g = load<Eight>(r.gate + i);
        const Eight given = load<Eight>(r.d_out + i), slope = g * (1.0f - g), d_a = given * g;
        const Eight d_u = given * (ADDS ? branch + linear : branch) * slope, d_z = sharpness * d_u;
        store(r.d_a + i, d_a);
        store(r.d_l + i, ADDS ? d_a + d_z : d_z);
        store(d_bias + i, load<Eight>(d_bias + i) + d_z);
        const Eight all = r.d_gate ? d_u + load<Eight>(r.d_gate + i) * slope : d_u;
        d_sharpness += all * (linear + load<Eight>(bias + i));
    }
    return total(d_sharpness);
}

}  // namespace

// in: a and l [N, width], bias [width], sharpness []; to: out and gate [N, width]
extern "C" int atlas_gate_forward(const GateSizes* sizes, const Tensor* in, const Tensor* to) {
    const GateSizes s = *sizes;
    const float *a = in[0].data, *l = in[1].data, *bias = in[2].data, sharpness = *in[3].data;
    float *out = to[0].data, *gate = to[1].data;
    const auto row = s.adds ? forward_row<true> : forward_row<false>;
    return for_rows(s.rows, s.threads, [=](Index n) {
        const Index at = n * s.width;
        row(s.width, a + at, l + at, bias, sharpness, out + at, gate + at);
    });
}

// in: a, l, bias, sharpness, gate, d_out, d_gate or nothing; to: d_a and d_l [N, width], d_bias [blocks, width] and
// d_sharpness [blocks]. A block of rows sums up its own, so that the result does not depend on the threads.
extern "C" int atlas_gate_backward(const GateSizes* sizes, const Tensor* in, const Tensor* to) {
    const GateSizes s = *sizes;
    const Tensor *from = in, *into = to;
    const auto row = s.adds ? backward_row<true> : backward_row<false>;
    return for_rows(s.blocks(), s.threads, [=](Index b) {
        float* d_bias = into[2].data + b * s.width;
        std::fill_n(d_bias, s.width, 0.0f);
        float d_sharpness = 0.0f;
        const float* d_gate = *from[3].data < s.limit ? from[6].data : nullptr;
        for (Index n = b * s.block; n < std::min((b + 1) * s.block, s.rows); ++n) {
            const Index at = n * s.width;
            const Row one{
                from[0].data + at, from[1].data + at, from[4].data + at, from[5].data + at,
                d_gate ? d_gate + at : nullptr, into[0].data + at, into[1].data + at
            };
            d_sharpness += row(s.width, one, from[2].data, *from[3].data, d_bias);
        }
        into[3].data[b] = d_sharpness;
    });
}
