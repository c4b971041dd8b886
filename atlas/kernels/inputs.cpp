// Queries, keys and values of a memory from their projections: causal depthwise convolution, rows of length 1 for
// queries and keys, SiLU for values. The same function as `plain_inputs` in atlas/ops/memory_inputs.py.

#include "matrix.h"

using namespace atlas;

extern "C" {

struct InputSizes {
    Index batch, heads, tokens, width, lags, threads;  // B, H, T, d, L
};

}  // extern "C"

namespace {

constexpr float SHORTEST = 1e-12f;  // EPSILON of atlas/ops/unit_rows.py
enum Part { QUERY, KEY, VALUE };

// One head's channels of one of q, k, v, in the projections [B, L - 1 + T, 3D] and in the weight [L, 3D].
struct Channels {
    const float *led, *weight;
    Index step, width, lags;  // of two tokens, or lags
    Channels(const InputSizes& s, const float* all, const float* weights, Index row, int part) {
        const Index head = row % s.heads, sequence = row / s.heads, first = (part * s.heads + head) * s.width;
        step = 3 * s.heads * s.width, width = s.width, lags = s.lags;
        led = all + sequence * (lags - 1 + s.tokens) * step + first;
        weight = weights + first;
    }
    // y_t = sum_lag w[lag] x_{t - lag}
    void mix(Index t, float* to) const {
        for (Index i = 0; i < width; i += 8) {
            Eight sum = {};
            for (Index lag = 0; lag < lags; ++lag)
                sum += load<Eight>(weight + lag * step + i) * load<Eight>(led + (t + lags - 1 - lag) * step + i);
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
            inverse[t] = 1.0f / (length < SHORTEST ? SHORTEST : length);
            for (Index i = 0; i < s.width; ++i) out[i] *= inverse[t];
        }
    }
}

// d_led and d_weight of these channels, to which is added.
void backward_part(
    const InputSizes& s, const Channels& from, int part, const Rows& d_out, Index n, const float* out, const float* inverse,
    float* d_led, float* d_weight
) {
    float* d_mixed = arena().take(s.width);
    for (Index t = 0; t < s.tokens; ++t, out += s.width) {
        const float* given = d_out.at(n, t);
        if (part == VALUE) {  // silu'(y) = s + y s (1 - s)
            from.mix(t, d_mixed);
            for (Index i = 0; i < s.width; i += 8) {
                const Eight y = load<Eight>(d_mixed + i), gate = sigmoid(y);
                store(d_mixed + i, load<Eight>(given + i) * (gate + y * gate * (1.0f - gate)));
            }
        } else {  // (dy - y <y, dy>) / ||x||
            const float along = dot(out, given, s.width);
            for (Index i = 0; i < s.width; ++i) d_mixed[i] = (given[i] - out[i] * along) * inverse[t];
        }
        for (Index lag = 0; lag < s.lags; ++lag) {
            const Index at = (t + s.lags - 1 - lag) * from.step;
            float *to = d_led + at, *own = d_weight + lag * from.step;
            const float *weight = from.weight + lag * from.step, *x = from.led + at;
            for (Index i = 0; i < s.width; ++i) {
                to[i] += d_mixed[i] * weight[i];
                own[i] += d_mixed[i] * x[i];
            }
        }
    }
}

}  // namespace

// out [3, B * H, T, d] of q, k, v; inverse [2, B * H, T], 1 / length of q and k.
extern "C" void atlas_inputs_forward(
    const InputSizes* sizes, const float* led, const float* weight, float* out, float* inverse
) {
    const InputSizes s = *sizes;
    const Index rows = s.batch * s.heads;
#pragma omp parallel for num_threads(s.threads) schedule(static)
    for (Index job = 0; job < 3 * rows; ++job) {
        const Index n = job / 3, part = job % 3, slot = part * rows + n;
        const Channels from(s, led, weight, n, part);
        forward_part(s, from, part, out + slot * s.tokens * s.width, part == VALUE ? nullptr : inverse + slot * s.tokens);
    }
}

// d_led [B, L - 1 + T, 3D] and d_weight [B, L, 3D] start at zero.
extern "C" void atlas_inputs_backward(
    const InputSizes* sizes, const float* led, const float* weight, const float* out, const float* inverse,
    const Rows* d_query, const Rows* d_key, const Rows* d_value, float* d_led, float* d_weight
) {
    const InputSizes s = *sizes;
    const Index rows = s.batch * s.heads;
    const Rows* given[] = {d_query, d_key, d_value};
#pragma omp parallel for num_threads(s.threads) schedule(static)
    for (Index job = 0; job < 3 * rows; ++job) {
        const Index n = job / 3, part = job % 3, slot = part * rows + n, sequence = n / s.heads;
        const Channels from(s, led, weight, n, part);
        arena().reset(s.width + 16);
        const Index first = from.weight - weight;
        float* own_led = d_led + sequence * (s.lags - 1 + s.tokens) * from.step + first;
        float* own_weight = d_weight + sequence * s.lags * from.step + first;
        const float* lengths = part == VALUE ? nullptr : inverse + slot * s.tokens;
        backward_part(s, from, part, *given[part], n, out + slot * s.tokens * s.width, lengths, own_led, own_weight);
    }
}
