// One chunk of the dual form, forward and backward: the same function as atlas/ops/fused_chunk.py, whose legend of
// names and equations holds here. A row is one memory's chunk; rows are shared out among threads.
//
// Inside, tokens are the vectorised dimension: a name stands for its transpose, [width, tokens], unless it ends in
// `_rows`. The weights are then read as they lie. Tokens are padded with zeros, which write nothing and read nothing.

#include "matrix.h"

using namespace atlas;

namespace {

constexpr Index BLOCK = 64;  // tokens at a time where every token reads the chunk's start

// A tensor [N, C, width] whose last dimension is contiguous.
struct Tokens {
    const float* data;
    Index row, token;  // strides
    const float* at(Index n, Index t) const { return data + n * row + t * token; }
};

}  // namespace

extern "C" {

struct Sizes {
    Index rows, count, width, hidden, features;  // N, C, d, h, p
    Index prefix, step, threads;
};

struct Inputs {
    const float *down, *up;  // contiguous
    Tokens query, key, value, query_features, key_features, rate;
};

}  // extern "C"

namespace {

struct Layout {
    Index block, lanes, pre, error, back, gram, total;  // floats kept of a block for the backward pass
    explicit Layout(const Sizes& s) {
        block = s.prefix ? s.count : std::min(s.count, BLOCK);
        lanes = padded(block);
        pre = 0;
        error = pre + 4 * s.hidden * lanes;
        back = error + s.width * lanes;
        gram = back + s.hidden * lanes;
        total = gram + (s.prefix ? 2 * lanes * lanes : 0);
    }
    Index blocks(const Sizes& s) const { return (s.count + block - 1) / block; }
};

void clear_padding(float* matrix, Index rows, Index step, Index from, Index to) {
    for (Index i = 0; i < rows; ++i)
        for (Index t = from; t < to; ++t) matrix[i * step + t] = 0;
}

// tokens first..first+count of row n -> [width, lanes], the rest zeros
void take(const Tokens& tokens, Index n, Index first, Index count, Index lanes, Index width, float* to, Index step) {
    transpose(count, width, tokens.at(n, first), tokens.token, to, step);
    clear_padding(to, width, step, count, lanes);
}

void keep_upper(float* gram, Index lanes) {  // entries [j, t] with t >= j
    for (Index j = 0; j < lanes; ++j) std::fill(gram + j * lanes, gram + j * lanes + j, 0.0f);
}

// bound = (1 + ||F||^2)^-1/2 per token
void bounds(const float* residual, Index width, Index lanes, float* bound) {
    for (Index t = 0; t < lanes; t += 8) {
        Eight square = Eight{} + 1.0f;
        for (Index i = 0; i < width; ++i) {
            const Eight part = load<Eight>(residual + i * lanes + t);
            square += part * part;
        }
        for (int l = 0; l < 8; ++l) bound[t + l] = 1.0f / std::sqrt(square[l]);
    }
}

void scaled(const float* matrix, const float* factor, Index width, Index lanes, float* to) {
    for (Index i = 0; i < width; ++i)
        for (Index t = 0; t < lanes; ++t) to[i * lanes + t] = matrix[i * lanes + t] * factor[t];
}

// For [2h, .] pre-activations, gate over linear: silu(A2) A3, and if asked sigmoid, silu, silu'.
void gated(const float* pre, Index step, Index hidden, Index lanes, float* units, float* sigma, float* silu, float* slope) {
    for (Index i = 0; i < hidden; ++i) {
        for (Index t = 0; t < lanes; t += 8) {
            const Eight gate = load<Eight>(pre + i * step + t), linear = load<Eight>(pre + (hidden + i) * step + t);
            const Eight s = sigmoid(gate), a = gate * s;
            const Index at = i * lanes + t;
            store(units + at, a * linear);
            if (sigma) store(sigma + at, s);
            if (silu) store(silu + at, a);
            if (slope) store(slope + at, s + a * (1.0f - s));
        }
    }
}

// X = [B A3 silu'(A2), B silu(A2)]
void signals(
    const float* back, const float* linear, Index linear_step, const float* slope, const float* silu, Index hidden,
    Index lanes, float* signal
) {
    for (Index i = 0; i < hidden; ++i) {
        for (Index t = 0; t < lanes; ++t) {
            const Index at = i * lanes + t;
            signal[at] = back[at] * linear[i * linear_step + t] * slope[at];
            signal[hidden * lanes + at] = back[at] * silu[at];
        }
    }
}

void forward_block(
    const Sizes& s, const Inputs& in, const Layout& layout, Index n, Index first, float* kept, float* out, float* after_down,
    float* after_up
) {
    const Index d = s.width, h = s.hidden, p = s.features, L = layout.lanes;
    const Index count = std::min(layout.block, s.count - first);
    const float *down = in.down + n * d * h, *up = in.up + n * 2 * h * p;
    float *pre = kept + layout.pre, *residual = kept + layout.error, *back = kept + layout.back;
    float *features = arena().take(p * 2 * L), *units = arena().take(h * L), *silu = arena().take(h * L);
    float *slope = arena().take(h * L), *error = arena().take(d * L), *signal = arena().take(2 * h * L);
    float *bound = arena().take(L), *rows = arena().take(L * std::max(d, h)), *result = arena().take(d * L);

    take(in.key_features, n, first, count, L, p, features, 2 * L);
    take(in.query_features, n, first, count, L, p, features + L, 2 * L);
    product<false, Into::set>(2 * h, 2 * L, p, up, p, features, 2 * L, pre, 2 * L);
    gated(pre, 2 * L, h, L, units, nullptr, silu, slope);

    for (Index t = 0; t < count; ++t) {
        const float *key = in.key.at(n, first + t), *value = in.value.at(n, first + t);
        for (Index i = 0; i < d; ++i) rows[t * d + i] = key[i] - value[i];
    }
    transpose(count, d, rows, d, residual, L);
    clear_padding(residual, d, L, count, L);
    product<false, Into::add>(d, L, h, down, h, units, L, residual, L);
    bounds(residual, d, L, bound);
    for (Index t = 0; t < L; ++t) bound[t] *= t < count ? *in.rate.at(n, first + t) : 0.0f;
    scaled(residual, bound, d, L, error);
    product<true, Into::set>(h, L, d, down, h, error, L, back, L);
    signals(back, pre + h * 2 * L, 2 * L, slope, silu, h, L, signal);

    float* read = pre + L;
    float *gram_upper = nullptr, *kernel_upper = nullptr;
    if (s.prefix) {
        gram_upper = arena().take(L * L), kernel_upper = arena().take(L * L);
        product<true, Into::set>(L, L, p, features, 2 * L, features + L, 2 * L, gram_upper, L);
        keep_upper(gram_upper, L);
        product<false, Into::subtract>(2 * h, L, L, signal, L, gram_upper, L, read, 2 * L);
        transpose(L, L, gram_upper, L, kept + layout.gram, L);
    }
    float* read_units = silu;  // no longer needed
    gated(read, 2 * L, h, L, read_units, nullptr, nullptr, nullptr);
    product<false, Into::set>(d, L, h, down, h, read_units, L, result, L);
    if (s.prefix) {
        product<true, Into::set>(L, L, h, units, L, read_units, L, kernel_upper, L);
        keep_upper(kernel_upper, L);
        product<false, Into::subtract>(d, L, L, error, L, kernel_upper, L, result, L);
        transpose(L, L, kernel_upper, L, kept + layout.gram + L * L, L);
    }
    transpose(d, L, result, L, rows, d);
    for (Index t = 0; t < count; ++t) {
        const float* query = in.query.at(n, first + t);
        float* to = out + (n * s.count + first + t) * d;
        for (Index i = 0; i < d; ++i) to[i] = query[i] + rows[t * d + i];
    }

    const float* keys = in.key_features.at(n, first);
    transpose(h, L, units, L, rows, h);
    if (s.step) {
        product<false, Into::subtract>(d, h, count, error, L, rows, h, after_down, h);
        product<false, Into::subtract>(2 * h, p, count, signal, L, keys, in.key_features.token, after_up, p);
    } else {
        product<false, Into::add>(d, h, count, error, L, rows, h, after_down, h);
        product<false, Into::add>(2 * h, p, count, signal, L, keys, in.key_features.token, after_up, p);
    }
}

Index forward_floats(const Sizes& s, const Layout& layout) {
    const Index L = layout.lanes, wide = std::max({s.width, s.hidden, s.features});
    return (2 + 1 + 1 + 1 + 1 + 2 + 1 + 1) * wide * L + 2 * L * L + L + 12 * 16;
}

// Gradients of a row's results; null where nothing depends on them.
struct Gradients {
    const float *out, *down, *up;
};

// Gradients of the inputs. `keys_live`: whether the written tokens have any.
struct Results {
    float *down, *up, *residual, *query_features, *key_features, *rate;
};

void backward_block(
    const Sizes& s, const Inputs& in, const Layout& layout, Index n, Index first, const float* kept, const Gradients& g,
    const Results& to, bool keys_live
) {
    const Index d = s.width, h = s.hidden, p = s.features, L = layout.lanes;
    const Index count = std::min(layout.block, s.count - first);
    const float *down = in.down + n * d * h, *up = in.up + n * 2 * h * p;
    const float *g_down = g.down ? g.down + n * d * h : nullptr, *g_up = g.up ? g.up + n * 2 * h * p : nullptr;
    float *d_down = to.down + n * d * h, *d_up = to.up + n * 2 * h * p;
    const float *pre = kept + layout.pre, *read = pre + L, *linear = pre + h * 2 * L, *read_linear = linear + L;
    const float *residual = kept + layout.error, *back = kept + layout.back;
    const float *gram = kept + layout.gram, *kernel = gram + L * L;

    float *features = arena().take(p * 2 * L), *d_both = arena().take(2 * h * 2 * L), *d_features = arena().take(p * 2 * L);
    float *units = arena().take(h * L), *sigma = arena().take(h * L), *silu = arena().take(h * L), *slope = arena().take(h * L);
    float *read_units = arena().take(h * L), *read_silu = arena().take(h * L), *read_slope = arena().take(h * L);
    float *bound = arena().take(L), *scale = arena().take(L), *error = arena().take(d * L), *signal = arena().take(2 * h * L);
    float *d_out = arena().take(d * L), *d_read_units = arena().take(h * L), *d_units = arena().take(h * L);
    float *d_error = arena().take(d * L), *d_signal = arena().take(2 * h * L), *d_back = arena().take(h * L);
    float *upper = arena().take(L * L), *lower = arena().take(L * L), *rows = arena().take(L * std::max({d, h, p}));
    float *d_pre = d_both, *d_read = d_both + L;

    take({g.out, s.count * d, d}, n, first, count, L, d, d_out, L);
    take(in.key_features, n, first, count, L, p, features, 2 * L);
    take(in.query_features, n, first, count, L, p, features + L, 2 * L);
    gated(read, 2 * L, h, L, read_units, nullptr, read_silu, read_slope);

    // out = q + Z W1^T - kernel E, kernel = tril(Z U^T)
    product<true, Into::set>(h, L, d, down, h, d_out, L, d_read_units, L);
    if (keys_live) {
        gated(pre, 2 * L, h, L, units, sigma, silu, slope);
        bounds(residual, d, L, bound);
        for (Index t = 0; t < L; ++t) scale[t] = bound[t] * (t < count ? *in.rate.at(n, first + t) : 0.0f);
        scaled(residual, scale, d, L, error);
        std::fill_n(d_error, d * L, 0.0f);
        std::fill_n(d_units, h * L, 0.0f);
        std::fill_n(d_signal, 2 * h * L, 0.0f);
        if (g_down) {
            product<false, Into::set>(d, L, h, g_down, h, units, L, d_error, L);
            product<true, Into::set>(h, L, d, g_down, h, error, L, d_units, L);
        }
        if (g_up) product<false, Into::set>(2 * h, L, p, g_up, p, features, 2 * L, d_signal, L);
        if (s.step) {
            for (Index i = 0; i < d * L; ++i) d_error[i] = -d_error[i];
            for (Index i = 0; i < h * L; ++i) d_units[i] = -d_units[i];
            for (Index i = 0; i < 2 * h * L; ++i) d_signal[i] = -d_signal[i];
        }
    }
    if (s.prefix) {
        product<true, Into::set>(L, L, d, error, L, d_out, L, upper, L);  // minus the kernel's gradient
        keep_upper(upper, L);
        transpose(L, L, upper, L, lower, L);
        product<false, Into::subtract>(h, L, L, units, L, upper, L, d_read_units, L);
        product<false, Into::subtract>(d, L, L, d_out, L, kernel, L, d_error, L);
        product<false, Into::subtract>(h, L, L, read_units, L, lower, L, d_units, L);
    }

    // Z = silu(P2) P3, P = Q W^T - gram X
    for (Index i = 0; i < h; ++i) {
        for (Index t = 0; t < L; ++t) {
            const Index at = i * L + t;
            d_read[i * 2 * L + t] = d_read_units[at] * read_linear[i * 2 * L + t] * read_slope[at];
            d_read[(h + i) * 2 * L + t] = d_read_units[at] * read_silu[at];
        }
    }

    if (keys_live) {
        if (s.prefix) product<false, Into::subtract>(2 * h, L, L, d_read, 2 * L, gram, L, d_signal, L);
        signals(back, linear, 2 * L, slope, silu, h, L, signal);

        // X = [B A3 silu'(A2), B silu(A2)], B = E W1, E = eta r F
        for (Index i = 0; i < h; ++i) {
            for (Index t = 0; t < L; ++t) {
                const Index at = i * L + t;
                d_back[at] = d_signal[at] * linear[i * 2 * L + t] * slope[at] + d_signal[h * L + at] * silu[at];
            }
        }
        product<false, Into::add>(d, L, h, down, h, d_back, L, d_error, L);
        float* along = rows;
        std::fill_n(along, L, 0.0f);
        for (Index i = 0; i < d; ++i)
            for (Index t = 0; t < L; ++t) along[t] += residual[i * L + t] * d_error[i * L + t];
        for (Index t = 0; t < count; ++t) to.rate[n * s.count + first + t] = bound[t] * along[t];
        for (Index t = 0; t < L; ++t) along[t] *= scale[t] * bound[t] * bound[t];
        for (Index i = 0; i < d; ++i)
            for (Index t = 0; t < L; ++t)
                d_error[i * L + t] = d_error[i * L + t] * scale[t] - residual[i * L + t] * along[t];
        const float* d_residual = d_error;
        product<true, Into::add>(h, L, d, down, h, d_residual, L, d_units, L);

        // U = silu(A2) A3, A = K W^T
        for (Index i = 0; i < h; ++i) {
            for (Index t = 0; t < L; ++t) {
                const Index at = i * L + t;
                const float a3 = linear[i * 2 * L + t], d_slope = d_signal[at] * back[at];
                const float d_silu = d_units[at] * a3 + d_signal[h * L + at] * back[at];
                const float curvature = sigma[at] + slope[at] - 2.0f * sigma[at] * slope[at];  // silu''
                d_pre[i * 2 * L + t] = d_silu * slope[at] + d_slope * a3 * curvature;
                d_pre[(h + i) * 2 * L + t] = d_units[at] * silu[at] + d_slope * slope[at];
            }
        }
        transpose(d, L, d_residual, L, rows, d);
        std::copy_n(rows, count * d, to.residual + (n * s.count + first) * d);
    }

    transpose(h, L, read_units, L, rows, h);
    product<false, Into::add>(d, h, count, d_out, L, rows, h, d_down, h);
    const Tokens &keys = in.key_features, &queries = in.query_features;
    product<false, Into::add>(2 * h, p, count, d_read, 2 * L, queries.at(n, first), queries.token, d_up, p);
    if (keys_live) {
        transpose(h, L, d_back, L, rows, h);
        product<false, Into::add>(d, h, count, error, L, rows, h, d_down, h);
        transpose(h, L, units, L, rows, h);
        product<false, Into::add>(d, h, count, d_error, L, rows, h, d_down, h);
        product<false, Into::add>(2 * h, p, count, d_pre, 2 * L, keys.at(n, first), keys.token, d_up, p);
        product<true, Into::set>(p, 2 * L, 2 * h, up, p, d_both, 2 * L, d_features, 2 * L);
        if (g_up && s.step) product<true, Into::subtract>(p, L, 2 * h, g_up, p, signal, L, d_features, 2 * L);
        if (g_up && !s.step) product<true, Into::add>(p, L, 2 * h, g_up, p, signal, L, d_features, 2 * L);
    } else {
        product<true, Into::set>(p, L, 2 * h, up, p, d_read, 2 * L, d_features + L, 2 * L);
    }
    if (s.prefix) {
        product<true, Into::set>(L, L, 2 * h, signal, L, d_read, 2 * L, upper, L);  // minus the gradient of gram
        keep_upper(upper, L);
        transpose(L, L, upper, L, lower, L);
        product<false, Into::subtract>(p, L, L, features + L, 2 * L, lower, L, d_features, 2 * L);
        product<false, Into::subtract>(p, L, L, features, 2 * L, upper, L, d_features + L, 2 * L);
    }
    transpose(p, L, d_features + L, 2 * L, rows, p);
    std::copy_n(rows, count * p, to.query_features + (n * s.count + first) * p);
    if (keys_live) {
        transpose(p, L, d_features, 2 * L, rows, p);
        std::copy_n(rows, count * p, to.key_features + (n * s.count + first) * p);
    }
}

Index backward_floats(const Sizes& s, const Layout& layout) {
    const Index L = layout.lanes, wide = std::max({s.width, s.hidden, s.features});
    return 27 * wide * L + 2 * L * L + 2 * L + 25 * 16;
}

}  // namespace

extern "C" Index atlas_kept_floats(const Sizes* s) {
    const Layout layout(*s);
    return layout.total * layout.blocks(*s);
}

extern "C" void atlas_chunk_forward(
    const Sizes* sizes, const Inputs* inputs, float* kept, float* out, float* after_down, float* after_up
) {
    const Sizes s = *sizes;
    const Inputs in = *inputs;
    const Layout layout(s);
    const Index down = s.width * s.hidden, up = 2 * s.hidden * s.features, blocks = layout.blocks(s);
#pragma omp parallel for num_threads(s.threads) schedule(static)
    for (Index n = 0; n < s.rows; ++n) {
        float *own_down = after_down + n * down, *own_up = after_up + n * up;
        if (s.step) {
            std::copy_n(in.down + n * down, down, own_down);
            std::copy_n(in.up + n * up, up, own_up);
        } else {
            std::fill_n(own_down, down, 0.0f);
            std::fill_n(own_up, up, 0.0f);
        }
        for (Index b = 0; b < blocks; ++b) {
            arena().reset(forward_floats(s, layout));
            float* own_kept = kept + (n * blocks + b) * layout.total;
            forward_block(s, in, layout, n, b * layout.block, own_kept, out, own_down, own_up);
        }
    }
}

// `d_down` and `d_up` null: nothing depends on what the chunk writes.
extern "C" void atlas_chunk_backward(
    const Sizes* sizes, const Inputs* inputs, const float* kept, const float* g_out, const float* g_down, const float* g_up,
    float* d_down, float* d_up, float* d_residual, float* d_query_features, float* d_key_features, float* d_rate
) {
    const Sizes s = *sizes;
    const Inputs in = *inputs;
    const Layout layout(s);
    const Gradients gradients{g_out, g_down, g_up};
    const Results results{d_down, d_up, d_residual, d_query_features, d_key_features, d_rate};
    const Index down = s.width * s.hidden, up = 2 * s.hidden * s.features, blocks = layout.blocks(s);
    const bool keys_live = s.prefix || g_down || g_up;
#pragma omp parallel for num_threads(s.threads) schedule(static)
    for (Index n = 0; n < s.rows; ++n) {
        if (s.step && g_down) std::copy_n(g_down + n * down, down, d_down + n * down);
        else std::fill_n(d_down + n * down, down, 0.0f);
        if (s.step && g_up) std::copy_n(g_up + n * up, up, d_up + n * up);
        else std::fill_n(d_up + n * up, up, 0.0f);
        for (Index b = 0; b < blocks; ++b) {
            arena().reset(backward_floats(s, layout));
            const float* own_kept = kept + (n * blocks + b) * layout.total;
            backward_block(s, in, layout, n, b * layout.block, own_kept, gradients, results, keys_live);
        }
    }
}
