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

// One head's channels of one of q, k, v: where they start in tensors of 3D channels, of a sequence or of the weight.
struct Channels {
    Index first, sequence, step;  // step: of two tokens, or lags
    Channels(const InputSizes& s, Index row, int part) {
        first = (part * s.heads + row % s.heads) * s.width, sequence = row / s.heads, step = 3 * s.heads * s.width;
    }
    template <class Float>
    Float* of(Float* all, Index tokens) const {
        return all + sequence * tokens * step + first;
    }
};

// The channels of a sequence: those of the tokens before the stretch, x_{-(L - 1)} to x_{-1}, and those of its tokens.
template <class Float>
struct History {
    Float *recent, *tokens;
    Index step, before;
    History(const InputSizes& s, const Channels& channels, Float* all_recent, Float* all) : before(s.lags - 1) {
        recent = channels.of(all_recent, before), tokens = channels.of(all, s.tokens), step = channels.step;
    }
    Float* at(Index t) const { return t < 0 ? recent + (before + t) * step : tokens + t * step; }
};

struct Source {
    History<const float> x;
    const float* weight;
    Index step, width, lags;
    Source(const InputSizes& s, const Channels& channels, const Tensor* in) : x(s, channels, in[0].data, in[1].data) {
        weight = in[2].data + channels.first;
        step = channels.step, width = s.width, lags = s.lags;
    }
    // y_t = sum_lag weight[lag] x_{t - lag}
    void mix(Index t, float* to) const {
        if (t < lags - 1) return mix(to, [&](Index lag) { return x.at(t - lag); });
        mix(to, [now = x.at(t), this](Index lag) { return now - lag * step; });
    }
    template <class At>
    void mix(float* to, At at) const {
        for (Index i = 0; i < width; i += 8) {
            Eight sum = {};
            for (Index lag = 0; lag < lags; ++lag) sum += load<Eight>(weight + lag * step + i) * load<Eight>(at(lag) + i);
            store(to + i, sum);
        }
    }
};

void forward_part(const InputSizes& s, const Source& from, int part, float* out, float* inverse) {
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

// The gradient of y_t.
void mixed_gradient(
    const InputSizes& s, const Source& from, int part, Index t, const float* given, const float* out, const float* inverse,
    float* to
) {
    if (part == VALUE) {  // silu'(y) = s + y s (1 - s)
        from.mix(t, to);
        for (Index i = 0; i < s.width; i += 8) {
            const Eight y = load<Eight>(to + i), gate = sigmoid(y);
            store(to + i, load<Eight>(given + i) * (gate + y * gate * (1.0f - gate)));
        }
    } else {  // (dy - y <y, dy>) / ||x||
        const float *unit = out + t * s.width, along = dot(unit, given, s.width);
        for (Index i = 0; i < s.width; ++i) to[i] = (given[i] - unit[i] * along) * inverse[t];
    }
}

// d_x and d_weight of these channels. Token t completes the gradient of x_{t - (L - 1)}.
void backward_part(
    const InputSizes& s, const Source& from, int part, const Tensor& d_out, Index n, const float* out, const float* inverse,
    const History<float>& d_x, float* d_weight
) {
    const Index L = s.lags, d = s.width;
    float *d_mixed = arena().take(L * d), *own = arena().take(L * d);  // of the last L tokens, t at t % L; d_weight
    std::fill_n(d_mixed, L * d, 0.0f);
    std::fill_n(own, L * d, 0.0f);
    for (Index t = 0; t < s.tokens + L - 1; ++t) {
        float* newest = d_mixed + t % L * d;
        if (t < s.tokens) {
            mixed_gradient(s, from, part, t, d_out.at(n, t), out, inverse, newest);
            for (Index lag = 0; lag < L; ++lag) {
                const float* x = from.x.at(t - lag);
                for (Index i = 0; i < d; i += 8)
                    store(own + lag * d + i, load<Eight>(own + lag * d + i) + load<Eight>(newest + i) * load<Eight>(x + i));
            }
        } else {
            std::fill_n(newest, d, 0.0f);
        }
        float* to = d_x.at(t - (L - 1));
        const Index oldest = (t + 1) % L;
        for (Index i = 0; i < d; i += 8) {
            Eight sum = {};
            for (Index lag = 0; lag < L; ++lag) {
                const Index place = oldest + lag < L ? oldest + lag : oldest + lag - L;
                sum += load<Eight>(from.weight + lag * from.step + i) * load<Eight>(d_mixed + place * d + i);
            }
            store(to + i, sum);
        }
    }
    for (Index lag = 0; lag < L; ++lag) std::copy_n(own + lag * d, d, d_weight + lag * from.step);
}

}  // namespace

// in: recent [B, L - 1, 3D], x [B, T, 3D], weight [L, 3D]; to: query, key, value [B * H, T, d], inverse [2, B * H, T], that is
// 1 / length of queries and keys before they are scaled
extern "C" int atlas_inputs_forward(const InputSizes* sizes, const Tensor* in, const Tensor* to) {
    const InputSizes s = *sizes;
    const Index rows = s.batch * s.heads;
    return for_rows(3 * rows, s.threads, [=](Index job) {
        const Index n = job / 3, part = job % 3;
        const Source from(s, Channels(s, n, part), in);
        float* inverse = part == VALUE ? nullptr : to[3].data + (part * rows + n) * s.tokens;
        forward_part(s, from, part, to[part].data + n * s.tokens * s.width, inverse);
    });
}

// in: recent, x, weight, query, key, inverse, and gradients of query, key, value; to: d_recent, d_x and d_weight [B, L, 3D]
extern "C" int atlas_inputs_backward(const InputSizes* sizes, const Tensor* in, const Tensor* to) {
    const InputSizes s = *sizes;
    const Index rows = s.batch * s.heads;
    return for_rows(3 * rows, s.threads, [=](Index job) {
        const Index n = job / 3, part = job % 3;
        const Channels channels(s, n, part);
        arena().reset(2 * s.lags * s.width + 32);
        const float* out = part == VALUE ? nullptr : in[3 + part].data + n * s.tokens * s.width;
        const float* lengths = part == VALUE ? nullptr : in[5].data + (part * rows + n) * s.tokens;
        const History<float> d_x(s, channels, to[0].data, to[1].data);
        backward_part(
            s, Source(s, channels, in), part, in[6 + part], n, out, lengths, d_x, channels.of(to[2].data, s.lags)
        );
    });
}
