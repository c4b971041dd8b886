// The backward pass of a block of tokens: chunk.h has the names.
#pragma once

#include "chunk.h"

namespace atlas {

// Gradients of the tokens, [N, T, ...]. With shared features those of queries and keys hold all, and those of the features
// are null; without, the gradient of the queries is that of `out`.
struct TokenGradients {
    float *query, *key, *value, *query_features, *key_features, *rate;
};

class Backward : Block {
  public:
    // `g`: gradients of the sum of the chunk's updates, null where nothing depends on it.
    Backward(const Block& block, const float* kept, Weights g)
        : Block(block), g(g), keys_live(s.prefix || g.down || g.up), pre(kept + layout.pre), linear(pre + h * wide),
          read(pre + L), read_linear(read + h * wide), residual(kept + layout.residual), back(kept + layout.back),
          gram(kept + layout.gram), kernel(kept + layout.kernel), features(arena().take(p * wide)),
          d_both(arena().take(2 * h * wide)), d_pre(d_both), d_read(d_both + L), d_features(arena().take(p * wide)),
          units(arena().take(h * L)), sigma(arena().take(h * L)), silu(arena().take(h * L)), slope(arena().take(h * L)),
          read_units(arena().take(h * L)), read_silu(arena().take(h * L)), read_slope(arena().take(h * L)),
          bound(arena().take(L)), scale(arena().take(L)), error(arena().take(d * L)), signal(arena().take(2 * h * L)),
          d_out(arena().take(d * L)), d_read_units(arena().take(h * L)), d_units(arena().take(h * L)),
          d_error(arena().take(d * L)), d_signal(arena().take(2 * h * L)), d_back(arena().take(h * L)),
          upper(arena().take(L * L)), lower(arena().take(L * L)), rows(arena().take(L * std::max({d, h, p}))) {}

    static Index floats(const ScanSizes& s) {
        const Index L = Layout(s).lanes, wide = std::max({s.width, s.hidden, s.features});
        return 27 * wide * L + 2 * L * L + 2 * L + 25 * 16;
    }

    // `to`: gradients of the start weights, to which the block's are added.
    void run(float* g_out, Weights to, const TokenGradients& tokens) const {
        take({g_out, s.tokens() * d, d}, n, first, count, d, L, d_out, L);
        take_features(features);
        gated(read, wide, h, L, read_units, nullptr, read_silu, read_slope);
        product<true, Into::set>(h, L, d, start.down, h, d_out, L, d_read_units, L);
        if (keys_live) of_updates();
        if (s.prefix) of_kernel();
        of_reads();
        if (keys_live) {
            if (s.prefix) product<false, Into::subtract>(2 * h, L, L, d_read, wide, gram, L, d_signal, L);
            of_errors(tokens);
            of_keys();
        }
        of_weights(to);
        of_features(g_out + token() * d, tokens);
        if (!keys_live) nothing(tokens);
    }

  private:
    const Weights g;
    const bool keys_live;
    const float *const pre, *const linear, *const read, *const read_linear, *const residual, *const back, *const gram;
    const float* const kernel;
    float *const features, *const d_both, *const d_pre, *const d_read, *const d_features, *const units, *const sigma;
    float *const silu, *const slope, *const read_units, *const read_silu, *const read_slope, *const bound, *const scale;
    float *const error, *const signal, *const d_out, *const d_read_units, *const d_units, *const d_error, *const d_signal;
    float *const d_back, *const upper, *const lower, *const rows;

    // Updates E^T U and X^T K
    void of_updates() const {
        gated(pre, wide, h, L, units, sigma, silu, slope);
        bounds(residual, d, L, bound);
        error_scale(bound, scale);
        scaled(residual, scale, d, L, error);
        signals(back, linear, slope, silu, signal);
        std::fill_n(d_error, d * L, 0.0f);
        std::fill_n(d_units, h * L, 0.0f);
        std::fill_n(d_signal, 2 * h * L, 0.0f);
        if (g.down) {
            product<false, Into::set>(d, L, h, g.down, h, units, L, d_error, L);
            product<true, Into::set>(h, L, d, g.down, h, error, L, d_units, L);
        }
        if (g.up) product<false, Into::set>(2 * h, L, p, g.up, p, features, wide, d_signal, L);
    }

    // out = ... - kernel E,  kernel = tril(Z U^T)
    void of_kernel() const {
        product<true, Into::set>(L, L, d, error, L, d_out, L, upper, L);  // minus the kernel's gradient
        keep_upper(upper, L);
        transpose(L, L, upper, L, lower, L);
        product<false, Into::subtract>(h, L, L, units, L, upper, L, d_read_units, L);
        product<false, Into::subtract>(d, L, L, d_out, L, kernel, L, d_error, L);
        product<false, Into::subtract>(h, L, L, read_units, L, lower, L, d_units, L);
    }

    // Z = silu(R2) R3
    void of_reads() const {
        for (Index i = 0; i < h; ++i) {
            for_vectors(L, [=](auto zero, Index t) {
                using Lanes = decltype(zero);
                const Index at = i * L + t;
                const Lanes given = load<Lanes>(d_read_units + at);
                store(d_read + i * wide + t, given * load<Lanes>(read_linear + i * wide + t) * load<Lanes>(read_slope + at));
                store(d_read + (h + i) * wide + t, given * load<Lanes>(read_silu + at));
            });
        }
    }

    // X = [back A3 silu'(A2), back silu(A2)],  back = E W1,  E = eta r e
    void of_errors(const TokenGradients& tokens) const {
        for (Index i = 0; i < h; ++i) {
            for_vectors(L, [=](auto zero, Index t) {
                using Lanes = decltype(zero);
                const Index at = i * L + t;
                const Lanes of_slope = load<Lanes>(d_signal + at) * load<Lanes>(linear + i * wide + t);
                const Lanes of_silu = load<Lanes>(d_signal + h * L + at) * load<Lanes>(silu + at);
                store(d_back + at, of_slope * load<Lanes>(slope + at) + of_silu);
            });
        }
        product<false, Into::add>(d, L, h, start.down, h, d_back, L, d_error, L);
        float* along = rows;
        for_vectors(L, [=](auto sum, Index t) {
            using Lanes = decltype(sum);
            for (Index at = t; at < d * L; at += L) sum += load<Lanes>(residual + at) * load<Lanes>(d_error + at);
            store(along + t, sum);
        });
        for (Index t = 0; t < count; ++t) tokens.rate[token() + t] = bound[t] * along[t];
        for (Index t = 0; t < L; ++t) along[t] *= scale[t] * bound[t] * bound[t];
        float* d_residual = d_error;
        for_vectors(L, [=](auto zero, Index t) {
            using Lanes = decltype(zero);
            const Lanes share = load<Lanes>(scale + t), shift = load<Lanes>(along + t);
            for (Index at = t; at < d * L; at += L)
                store(d_residual + at, load<Lanes>(d_error + at) * share - load<Lanes>(residual + at) * shift);
        });
        product<true, Into::add>(h, L, d, start.down, h, d_residual, L, d_units, L);
        float *key = tokens.key + token() * d, *value = tokens.value + token() * d;
        give(d_residual, L, d, rows, key);
        for_vectors(count * d, [=](auto zero, Index i) { store(value + i, zero - load<decltype(zero)>(key + i)); });
    }

    // U = silu(A2) A3, and A in X
    void of_keys() const {
        for (Index i = 0; i < h; ++i) {
            for_vectors(L, [=](auto zero, Index t) {
                using Lanes = decltype(zero);
                const Index at = i * L + t;
                const Lanes a3 = load<Lanes>(linear + i * wide + t), b = load<Lanes>(back + at);
                const Lanes d_u = load<Lanes>(d_units + at), s = load<Lanes>(sigma + at), first = load<Lanes>(slope + at);
                const Lanes d_slope = load<Lanes>(d_signal + at) * b;
                const Lanes d_silu = d_u * a3 + load<Lanes>(d_signal + h * L + at) * b;
                const Lanes curvature = s + first - 2.0f * s * first;  // silu''
                store(d_pre + i * wide + t, d_silu * first + d_slope * a3 * curvature);
                store(d_pre + (h + i) * wide + t, d_u * load<Lanes>(silu + at) + d_slope * first);
            });
        }
    }

    void of_weights(Weights to) const {
        const Tensor &keys = in.key_features, &queries = in.query_features;
        transpose(h, L, read_units, L, rows, h);
        product<false, Into::add>(d, h, count, d_out, L, rows, h, to.down, h);
        product<false, Into::add>(2 * h, p, count, d_read, wide, queries.at(n, first), queries.second, to.up, p);
        if (!keys_live) return;
        transpose(h, L, d_back, L, rows, h);
        product<false, Into::add>(d, h, count, error, L, rows, h, to.down, h);
        transpose(h, L, units, L, rows, h);
        product<false, Into::add>(d, h, count, d_error, L, rows, h, to.down, h);  // d_residual by now
        product<false, Into::add>(2 * h, p, count, d_pre, wide, keys.at(n, first), keys.second, to.up, p);
    }

    // A = K W^T,  R = Q W^T - gram X,  gram = tril(Q K^T),  X^T K
    void of_features(const float* g_query, const TokenGradients& tokens) const {
        if (keys_live) product<true, Into::set>(p, wide, 2 * h, start.up, p, d_both, wide, d_features, wide);
        else product<true, Into::set>(p, L, 2 * h, start.up, p, d_read, wide, d_features + L, wide);
        if (g.up) product<true, Into::add>(p, L, 2 * h, g.up, p, signal, L, d_features, wide);
        if (s.prefix) {
            product<true, Into::set>(L, L, 2 * h, signal, L, d_read, wide, upper, L);  // minus the gradient of gram
            keep_upper(upper, L);
            transpose(L, L, upper, L, lower, L);
            product<false, Into::subtract>(p, L, L, features + L, wide, lower, L, d_features, wide);
            product<false, Into::subtract>(p, L, L, features, wide, upper, L, d_features + L, wide);
        }
        if (s.shared) {
            add(d_features + L, g_query, tokens.query + token() * d);
            if (keys_live) add(d_features, tokens.key + token() * d, tokens.key + token() * d);
            return;
        }
        give(d_features + L, wide, p, rows, tokens.query_features + token() * p);
        if (keys_live) give(d_features, wide, p, rows, tokens.key_features + token() * p);
    }

    // to = gradient of features that are queries or keys, [d, L], plus `other` [count, d]
    void add(const float* gradient, const float* other, float* to) const {
        float* const part = rows;
        transpose(d, L, gradient, wide, part, d);
        for_vectors(count * d, [=](auto zero, Index i) {
            using Lanes = decltype(zero);
            store(to + i, load<Lanes>(other + i) + load<Lanes>(part + i));
        });
    }

    void nothing(const TokenGradients& tokens) const {
        std::fill_n(tokens.key + token() * d, count * d, 0.0f);
        std::fill_n(tokens.value + token() * d, count * d, 0.0f);
        if (!s.shared) std::fill_n(tokens.key_features + token() * p, count * p, 0.0f);
        std::fill_n(tokens.rate + token(), count, 0.0f);
    }
};

}  // namespace atlas
