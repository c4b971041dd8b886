// Queries mixed with their projections, as rows of length 1, and their gradients. The same function as
// atlas/ops/mixed_queries/torch.py.

#include "matrix.h"

using namespace atlas;

extern "C" {

struct MixSizes {
    Index threads, rows, tokens, width, heads;  // N, T, d, H; row n has head n % H
};

}  // extern "C"

namespace {

constexpr float SHORTEST = 1e-12f;  // EPSILON of atlas/ops/unit_rows.py

inline float inverse_length(const float* x, Index width) {
    const float length = std::sqrt(dot(x, x, width));
    return length < SHORTEST ? 0.0f : 1.0f / length;
}

}  // namespace

// in: query and projected [N, T, d], mix [H]; to: out [N, T, d], inverse [2, N, T], 1 / length of the projected queries
// and of the mixed ones
extern "C" int atlas_mix_forward(const MixSizes* sizes, const Tensor* in, const Tensor* to) {
    const MixSizes s = *sizes;
    const Tensor query = in[0], projected = in[1];
    const float* mix = in[2].data;
    float *all = to[0].data, *inverse = to[1].data;
    return for_rows(s.rows, s.threads, [=](Index n) {
        for (Index t = 0; t < s.tokens; ++t) {
            const Index at = n * s.tokens + t;
            const float *q = query.at(n, t), *p = projected.at(n, t);
            float *out = all + at * s.width, *first = inverse + at, *second = first + s.rows * s.tokens;
            *first = inverse_length(p, s.width);
            const float share = mix[n % s.heads] * *first;
            for (Index i = 0; i < s.width; i += 8) store(out + i, load<Eight>(q + i) + share * load<Eight>(p + i));
            *second = inverse_length(out, s.width);
            for (Index i = 0; i < s.width; i += 8) store(out + i, *second * load<Eight>(out + i));
        }
    });
}

// u = p / ||p||, y = q + lambda u, o = y / ||y||:
// dq = dy = (do - o <o, do>) / ||y||,   dlambda = sum_t <u, dy>,   dp = lambda (dy - u <u, dy>) / ||p||
//
// in: projected, mix, out, inverse, d_out; to: d_query and d_projected [N, T, d], d_mix of each row [N]
extern "C" int atlas_mix_backward(const MixSizes* sizes, const Tensor* in, const Tensor* to) {
    const MixSizes s = *sizes;
    const Tensor projected = in[0], d_out = in[4];
    const float *mix = in[1].data, *all = in[2].data, *inverse = in[3].data;
    float *d_queries = to[0].data, *d_projected = to[1].data, *d_mix = to[2].data;
    return for_rows(s.rows, s.threads, [=](Index n) {
        const float lambda = mix[n % s.heads];
        double sum = 0.0;
        for (Index t = 0; t < s.tokens; ++t) {
            const Index at = n * s.tokens + t;
            const float *p = projected.at(n, t), *given = d_out.at(n, t), *out = all + at * s.width;
            const float first = inverse[at], second = inverse[s.rows * s.tokens + at];
            float *d_q = d_queries + at * s.width, *d_p = d_projected + at * s.width;
            const float along = dot(out, given, s.width);
            for (Index i = 0; i < s.width; i += 8)
                store(d_q + i, second * (load<Eight>(given + i) - along * load<Eight>(out + i)));
            const float shared = first * dot(p, d_q, s.width), scale = lambda * first;  // shared: <u, dy>
            for (Index i = 0; i < s.width; i += 8)
                store(d_p + i, scale * (load<Eight>(d_q + i) - shared * first * load<Eight>(p + i)));
            sum += shared;
        }
        d_mix[n] = static_cast<float>(sum);
    });
}
