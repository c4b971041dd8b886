// Chunks of the dual form one after the other, forward and backward: the same function as atlas/ops/fused_chunk.py, whose
// legend of names and equations holds here, and `bound_norm` of atlas/ops/fast_weights.py after every chunk. A row is one
// memory; rows are shared out among threads.
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
    Index rows, chunks, count, width, hidden, features;  // N, n, C, d, h, p
    Index prefix, step, threads;
    double down_limit, up_limit;  // largest norms after a step
    Index down() const { return width * hidden; }
    Index up() const { return 2 * hidden * features; }
    Index tokens() const { return chunks * count; }
};

struct Inputs {
    const float *down, *up;  // [N, d, h], [N, 2h, p]
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

// Tokens of one chunk that are worked on at once.
struct Block {
    Index row, first, count;  // its first token, of the whole stretch
};

// A memory's weights, or gradients of them.
template <class Float>
struct Weights {
    Float *down, *up;
};
using Read = Weights<const float>;
using Written = Weights<float>;

void forward_block(
    const Sizes& s, const Inputs& in, Index lanes, const Block& block, Read start, float* kept, float* out, Written after
) {
    const Index d = s.width, h = s.hidden, p = s.features, L = lanes, n = block.row, first = block.first;
    const Index count = block.count;
    const float *down = start.down, *up = start.up;
    const Layout layout(s);
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
        float* to = out + (n * s.tokens() + first + t) * d;
        for (Index i = 0; i < d; ++i) to[i] = query[i] + rows[t * d + i];
    }

    const float* keys = in.key_features.at(n, first);
    transpose(h, L, units, L, rows, h);
    if (s.step) {
        product<false, Into::subtract>(d, h, count, error, L, rows, h, after.down, h);
        product<false, Into::subtract>(2 * h, p, count, signal, L, keys, in.key_features.token, after.up, p);
    } else {
        product<false, Into::add>(d, h, count, error, L, rows, h, after.down, h);
        product<false, Into::add>(2 * h, p, count, signal, L, keys, in.key_features.token, after.up, p);
    }
}

Index forward_floats(const Sizes& s, const Layout& layout) {
    const Index L = layout.lanes, wide = std::max({s.width, s.hidden, s.features});
    return (2 + 1 + 1 + 1 + 1 + 2 + 1 + 1) * wide * L + 2 * L * L + L + 12 * 16;
}

// Gradients of the tokens, [N, T, ...].
struct TokenGradients {
    float *residual, *query_features, *key_features, *rate;
};

// `g`: gradients of the weights after the chunk, null where nothing depends on them; then `keys_live` is false unless
// the chunk's own reads see what it writes. `to`: gradients of the weights before it, to which the block's are added.
void backward_block(
    const Sizes& s, const Inputs& in, Index lanes, const Block& block, Read start, const float* kept, const float* g_out,
    Read g, Written to, const TokenGradients& tokens
) {
    const Index d = s.width, h = s.hidden, p = s.features, L = lanes, n = block.row, first = block.first;
    const Index count = block.count;
    const bool keys_live = s.prefix || g.down || g.up;
    const float *down = start.down, *up = start.up, *g_down = g.down, *g_up = g.up;
    float *d_down = to.down, *d_up = to.up;
    const Layout layout(s);
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

    take({g_out, s.tokens() * d, d}, n, first, count, L, d, d_out, L);
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
        for (Index t = 0; t < count; ++t) tokens.rate[n * s.tokens() + first + t] = bound[t] * along[t];
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
        std::copy_n(rows, count * d, tokens.residual + (n * s.tokens() + first) * d);
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
    std::copy_n(rows, count * p, tokens.query_features + (n * s.tokens() + first) * p);
    if (keys_live) {
        transpose(p, L, d_features, 2 * L, rows, p);
        std::copy_n(rows, count * p, tokens.key_features + (n * s.tokens() + first) * p);
    } else {
        std::fill_n(tokens.residual + (n * s.tokens() + first) * d, count * d, 0.0f);
        std::fill_n(tokens.key_features + (n * s.tokens() + first) * p, count * p, 0.0f);
        std::fill_n(tokens.rate + n * s.tokens() + first, count, 0.0f);
    }
}

Index backward_floats(const Sizes& s, const Layout& layout) {
    const Index L = layout.lanes, wide = std::max({s.width, s.hidden, s.features});
    return 27 * wide * L + 2 * L * L + 2 * L + 25 * 16;
}

double square_sum(const float* matrix, Index size) {
    double sum = 0;
    for (Index i = 0; i < size; i += 8) {
        Eight part = load<Eight>(matrix + i);
        part *= part;
        sum += ((part[0] + part[1]) + (part[2] + part[3])) + ((part[4] + part[5]) + (part[6] + part[7]));
    }
    return sum;
}

// Scales a matrix back to its largest norm; what it was before, or 0 if it was not beyond.
float bound(float* matrix, Index size, double limit) {
    const double norm = std::sqrt(square_sum(matrix, size));
    if (!(norm > limit)) return 0;
    const float factor = static_cast<float>(limit / norm);
    for (Index i = 0; i < size; ++i) matrix[i] *= factor;
    return static_cast<float>(norm);
}

// M' = M l / ||M||:  dM = l / ||M|| (dM' - M' <M', dM'> / l^2)
void unbound(float* gradient, const float* matrix, Index size, double limit, float norm) {
    if (norm == 0) return;
    double along = 0;
    for (Index i = 0; i < size; ++i) along += static_cast<double>(matrix[i]) * gradient[i];
    const float share = static_cast<float>(along / (limit * limit)), factor = static_cast<float>(limit / norm);
    for (Index i = 0; i < size; ++i) gradient[i] = factor * (gradient[i] - share * matrix[i]);
}

// What a row keeps of a chunk for the backward pass: its blocks, the norms before they were bounded, and the weights after
// it. A chunk's are a tensor of their own: small ones are had from memory that was used before.
struct Kept {
    Index norms, down, up, total;
    Kept(const Sizes& s, const Layout& layout) {
        norms = layout.total * layout.blocks(s);
        down = norms + 8;
        up = down + s.down();
        total = up + s.up();
    }
};

void forward_row(const Sizes& s, const Inputs& in, Index n, float* const* kept, float* out, Written after) {
    const Layout layout(s);
    const Kept parts(s, layout);
    const Index blocks = layout.blocks(s);
    Read start{in.down + n * s.down(), in.up + n * s.up()};
    for (Index c = 0; c < s.chunks; ++c) {
        float* own = kept[c] + n * parts.total;
        const Written end = c + 1 < s.chunks ? Written{own + parts.down, own + parts.up} : after;
        if (s.step) {
            std::copy_n(start.down, s.down(), end.down);
            std::copy_n(start.up, s.up(), end.up);
        } else {
            std::fill_n(end.down, s.down(), 0.0f);
            std::fill_n(end.up, s.up(), 0.0f);
        }
        for (Index b = 0; b < blocks; ++b) {
            arena().reset(forward_floats(s, layout));
            const Index first = b * layout.block;
            const Block block{n, c * s.count + first, std::min(layout.block, s.count - first)};
            forward_block(s, in, layout.lanes, block, start, own + b * layout.total, out, end);
        }
        own[parts.norms] = s.step ? bound(end.down, s.down(), s.down_limit) : 0;
        own[parts.norms + 1] = s.step ? bound(end.up, s.up(), s.up_limit) : 0;
        start = {end.down, end.up};
    }
}

void backward_row(
    const Sizes& s, const Inputs& in, Index n, const float* const* kept, Read after, const float* g_out, Read g_after, Written to,
    const TokenGradients& tokens
) {
    const Layout layout(s);
    const Kept parts(s, layout);
    const Index blocks = layout.blocks(s), floats = backward_floats(s, layout);
    for (Index c = s.chunks - 1; c >= 0; --c) {
        const bool last = c + 1 == s.chunks;
        const float *own = kept[c] + n * parts.total, *before = c ? kept[c - 1] + n * parts.total : nullptr;
        const Read start = c ? Read{before + parts.down, before + parts.up} : Read{in.down + n * s.down(), in.up + n * s.up()};
        const Read end = last ? after : Read{own + parts.down, own + parts.up};
        arena().reset(floats + s.down() + s.up() + 32);
        // The gradient of the weights after the chunk: given, or what the chunk after this one has left in `to`.
        const float *down = last ? g_after.down : to.down, *up = last ? g_after.up : to.up;
        const Written g{down ? arena().take(s.down()) : nullptr, up ? arena().take(s.up()) : nullptr};
        const float* norms = own + parts.norms;
        if (g.down) std::copy_n(down, s.down(), g.down);
        if (g.up) std::copy_n(up, s.up(), g.up);
        if (g.down) unbound(g.down, end.down, s.down(), s.down_limit, norms[0]);
        if (g.up) unbound(g.up, end.up, s.up(), s.up_limit, norms[1]);
        if (g.down && s.step) std::copy_n(g.down, s.down(), to.down);
        else std::fill_n(to.down, s.down(), 0.0f);
        if (g.up && s.step) std::copy_n(g.up, s.up(), to.up);
        else std::fill_n(to.up, s.up(), 0.0f);
        const Index mark = arena().used();
        for (Index b = 0; b < blocks; ++b) {
            arena().release(mark);
            const Index first = b * layout.block;
            const Block block{n, c * s.count + first, std::min(layout.block, s.count - first)};
            backward_block(s, in, layout.lanes, block, start, own + b * layout.total, g_out, {g.down, g.up}, to, tokens);
        }
    }
}

}  // namespace

// Floats to keep per row and chunk.
extern "C" Index atlas_scan_floats(const Sizes* s) { return Kept(*s, Layout(*s)).total; }

// out [N, T, d]; weights after the last chunk, or without `step` the chunk's updates.
extern "C" void atlas_scan_forward(
    const Sizes* sizes, const Inputs* inputs, float* const* kept, float* out, float* after_down, float* after_up
) {
    const Sizes s = *sizes;
#pragma omp parallel for num_threads(s.threads) schedule(static)
    for (Index n = 0; n < s.rows; ++n)
        forward_row(s, *inputs, n, kept, out, {after_down + n * s.down(), after_up + n * s.up()});
}

// `g_down`, `g_up` null: nothing depends on the weights after the last chunk.
extern "C" void atlas_scan_backward(
    const Sizes* sizes, const Inputs* inputs, const float* const* kept, const float* after_down, const float* after_up, const float* g_out,
    const float* g_down, const float* g_up, float* d_down, float* d_up, float* d_residual, float* d_query_features,
    float* d_key_features, float* d_rate
) {
    const Sizes s = *sizes;
    const TokenGradients tokens{d_residual, d_query_features, d_key_features, d_rate};
#pragma omp parallel for num_threads(s.threads) schedule(static)
    for (Index n = 0; n < s.rows; ++n) {
        const Index down = n * s.down(), up = n * s.up();
        const Read after{after_down + down, after_up + up};
        const Read g{g_down ? g_down + down : nullptr, g_up ? g_up + up : nullptr};
        backward_row(s, *inputs, n, kept, after, g_out, g, {d_down + down, d_up + up}, tokens);
    }
}
