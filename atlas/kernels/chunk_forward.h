// The forward pass of a block of tokens: chunk.h has the names.
#pragma once

#include "chunk.h"

namespace atlas {

class Forward : Block {
  public:
    Forward(const Block& block, float* kept)
        : Block(block), pre(kept + layout.pre), linear(pre + h * wide), read(pre + L), residual(kept + layout.residual),
          back(kept + layout.back), gram(kept + layout.gram), kernel(kept + layout.kernel), features(arena().take(p * wide)),
          units(arena().take(h * L)), silu(arena().take(h * L)), slope(arena().take(h * L)), error(arena().take(d * L)),
          signal(arena().take(2 * h * L)), scale(arena().take(L)), upper(arena().take(L * L)),
          rows(arena().take(L * std::max(d, h))), result(arena().take(d * L)) {}

    static Index floats(const ScanSizes& s) {
        const Index L = Layout(s).lanes, wide = std::max({s.width, s.hidden, s.features});
        return 10 * wide * L + L * L + L + 12 * 16;
    }

    // `after`: `before` less the block's updates, or with them added, or the updates alone where it is null.
    void run(float* out, Weights before, Weights after) const {
        take_features(features);
        product<false, Into::set>(2 * h, wide, p, start.up, p, features, wide, pre, wide);
        gated(pre, wide, h, L, units, nullptr, silu, slope);
        errors();
        reads(out);
        if (s.end == STEP) writes<Into::subtract>(before, after);
        else if (before.down) writes<Into::add>(before, after);
        else writes<Into::set>(before, after);
    }

  private:
    float *const pre, *const linear, *const read, *const residual, *const back, *const gram, *const kernel;
    float *const features, *const units, *const silu, *const slope, *const error, *const signal, *const scale, *const upper;
    float *const rows, *const result;

    // e = k + U W1^T - v,  E = eta r e,  back = E W1,  X
    void errors() const {
        for (Index t = 0; t < count; ++t) {
            const float *key = in.key.at(n, first + t), *value = in.value.at(n, first + t);
            float* to = rows + t * d;
            for_vectors(d, [=](auto zero, Index i) {
                using Lanes = decltype(zero);
                store(to + i, load<Lanes>(key + i) - load<Lanes>(value + i));
            });
        }
        take({rows, 0, d}, 0, 0, count, d, L, residual, L);
        product<false, Into::add>(d, L, h, start.down, h, units, L, residual, L);
        bounds(residual, d, L, scale);
        error_scale(scale, scale);
        scaled(residual, scale, d, L, error);
        product<true, Into::set>(h, L, d, start.down, h, error, L, back, L);
        signals(back, linear, slope, silu, signal);
    }

    // R = Q W^T - gram X,  out = q + Z W1^T - kernel E
    void reads(float* out) const {
        if (s.prefix) {
            product<true, Into::set>(L, L, p, features, wide, features + L, wide, upper, L);
            keep_upper(upper, L);
            product<false, Into::subtract>(2 * h, L, L, signal, L, upper, L, read, wide);
            transpose(L, L, upper, L, gram, L);
        }
        float* read_units = silu;  // no longer needed
        gated(read, wide, h, L, read_units, nullptr, nullptr, nullptr);
        product<false, Into::set>(d, L, h, start.down, h, read_units, L, result, L);
        if (s.prefix) {
            product<true, Into::set>(L, L, h, units, L, read_units, L, upper, L);
            keep_upper(upper, L);
            product<false, Into::subtract>(d, L, L, error, L, upper, L, result, L);
            transpose(L, L, upper, L, kernel, L);
        }
        transpose(d, L, result, L, rows, d);
        for (Index t = 0; t < count; ++t) {
            const float *query = in.query.at(n, first + t), *read_row = rows + t * d;
            float* to = out + (token() + t) * d;
            for_vectors(d, [=](auto zero, Index i) {
                using Lanes = decltype(zero);
                store(to + i, load<Lanes>(query + i) + load<Lanes>(read_row + i));
            });
        }
    }

    template <Into INTO>
    void writes(Weights before, Weights after) const {
        transpose(h, L, units, L, rows, h);
        product<false, INTO>(d, h, count, error, L, rows, h, after.down, h, before.down);
        const Tensor& keys = in.key_features;
        product<false, INTO>(2 * h, p, count, signal, L, keys.at(n, first), keys.second, after.up, p, before.up);
    }
};

}  // namespace atlas
