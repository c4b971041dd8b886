// Queries, keys and values of a memory from their projections: causal depthwise convolution, rows of length 1 for
// queries and keys, SiLU for values. The same function as atlas/ops/memory_inputs/torch.py.

#include "matrix.h"

using namespace atlas;

extern "C" {

struct InputSizes {
    Index threads, batch, heads, tokens, width, lags;  // B, H, T, d, L
};

}  // extern "C"

namespace {

constexpr float SHORTEST = 1e-12f;  // EPSILON of atlas/ops/unit_rows.py
enum Part { QUERY, KEY, VALUE };

// One head's channels of one of q, k, v, in the projections [B, L - 1 + T, 3D] and in the weight [L, 3D].
struct Channels {
    const float *padded, *weight;
    Index step, width, lags;  // of two tokens, or lags
    Channels(const InputSizes& s, const float* all, const float* weights, Index row, int part) {
        const Index head = row % s.heads, sequence = row / s.heads, first = (part * s.heads + head) * s.width;
        step = 3 * s.heads * s.width, width = s.width, lags = s.lags;
        padded = all + sequence * (lags - 1 + s.tokens) * step + first;
        weight = weights + first;
    }
    // y_t = sum_lag weight[lag] x_{t - lag}
    void mix(Index t, float* to) const {
        for (Index i = 0; i < width; i += 8) {
            Eight sum = {};
            for (Index lag = 0; lag < lags; ++lag)
                sum += load<Eight>(weight + lag * step + i) * load<Eight>(padded + (t + lags - 1 - lag) * step + i);
            store(to + i, sum);
        }
    }
};

void forward_part(const InputSizes& s, const Channels& from, int part, float* out, float* inverse) {
    for (Index t = 0; t < s.tokens; ++t, out += s.width) {
        from.mix(t, out);
        if (part == VALUE) {
            for (Index i = 0; i < s.width; i += 8) store(out + i, load<Eight>(out + i) * sigmoid(load<Eight>(out + i)));
        } else {
            const float length = std::sqrt(dot(out, out, s.width));
            inverse[t] = length < SHORTEST ? 0.0f : 1.0f / length;
            for (Index i = 0; i < s.width; ++i) out[i] *= inverse[t];
        }
    }
}

// d_padded and d_weight of these channels, to which is added.
void backward_part(
    const InputSizes& s, const Channels& from, int part, const Tensor& d_out, Index n, const float* out, const float* inverse,
    float* d_padded, float* d_weight
) {
    float* d_mixed = arena().take(s.width);
    for (Index t = 0; t < s.tokens; ++t) {
        const float* given = d_out.at(n, t);
        if (part == VALUE) {  // silu'(y) = s + y s (1 - s)
            from.mix(t, d_mixed);
            for (Index i = 0; i < s.width; i += 8) {
                const Eight y = load<Eight>(d_mixed + i), gate = sigmoid(y);
                store(d_mixed + i, load<Eight>(given + i) * (gate + y * gate * (1.0f - gate)));
            }
        } else {  // (dy - y <y, dy>) / ||x||
            const float *unit = out + t * s.width, along = dot(unit, given, s.width);
            for (Index i = 0; i < s.width; ++i) d_mixed[i] = (given[i] - unit[i] * along) * inverse[t];
        }
        for (Index lag = 0; lag < s.lags; ++lag) {
            const Index at = (t + s.lags - 1 - lag) * from.step;
            float *to = d_padded + at, *own = d_weight + lag * from.step;
            const float *weight = from.weight + lag * from.step, *x = from.padded + at;
            for (Index i = 0; i < s.width; ++i) {
                to[i] += d_mixed[i] * weight[i];
                own[i] += d_mixed[i] * x[i];
            }
        }
    }
}

}  // namespace

// in: padded [B, L - 1 + T, 3D], weight [L, 3D]; to: query, key, value [B * H, T, d], inverse [2, B * H, T], 1 / length of
// queries and keys before they are scaled
extern "C" int atlas_inputs_forward(const InputSizes* sizes, const Tensor* in, const Tensor* to) {
    const InputSizes s = *sizes;
    const Index rows = s.batch * s.heads;
    return for_rows(3 * rows, s.threads, [=](Index job) {
        const Index n = job / 3, part = job % 3;
        const Channels from(s, in[0].data, in[1].data, n, part);
        float* inverse = part == VALUE ? nullptr : to[3].data + (part * rows + n) * s.tokens;
        forward_part(s, from, part, to[part].data + n * s.tokens * s.width, inverse);
    });
}

// in: padded, weight, query, key, inverse, and gradients of query, key, value; to: d_padded [B, L - 1 + T, 3D] and d_weight
// [B, L, 3D], which start at zero
extern "C" int atlas_inputs_backward(const InputSizes* sizes, const Tensor* in, const Tensor* to) {
    const InputSizes s = *sizes;
    const Index rows = s.batch * s.heads;
    return for_rows(3 * rows, s.threads, [=](Index job) {
        const Index n = job / 3, part = job % 3, sequence = n / s.heads;
        const Channels from(s, in[0].data, in[1].data, n, part);
        arena().reset(s.width + 16);
        const Index first = from.weight - in[1].data;
        float* own_led = to[0].data + sequence * (s.lags - 1 + s.tokens) * from.step + first;
        float* own_weight = to[1].data + sequence * s.lags * from.step + first;
        const float* out = part == VALUE ? nullptr : in[2 + part].data + n * s.tokens * s.width;
        const float* lengths = part == VALUE ? nullptr : in[4].data + (part * rows + n) * s.tokens;
        backward_part(s, from, part, in[5 + part], n, out, lengths, own_led, own_weight);
    });
}
