// The end of a chunk, forward and backward: the update of one memory's weights W and momentum S.
//
//     STEP       W <- W - update                          (atlas/ops/rules/gd.py)
//     MOMENTUM   S <- theta S + update, W <- alpha W - S  (atlas/ops/rules/momentum.py)
//
// after which a matrix that is too large is scaled back (`bound_norm` of atlas/ops/fast_weights.py).
#pragma once

#include "chunk.h"

namespace atlas {

// One matrix at the start and at the end of a chunk; `momentum` only for MOMENTUM.
struct Matrix {
    float *weights, *momentum;
};

// Sums of 4 products have the precision of a float, sums of these that of a double. `size` is a multiple of 64.
inline double inner(const float* a, const float* b, Index size) {
    typedef double Doubles __attribute__((vector_size(64)));
    Doubles sum = {};
    for (Index first = 0; first < size; first += 32) {
        Eight part = {};
        for (Index i = first; i < first + 32; i += 8) part += load<Eight>(a + i) * load<Eight>(b + i);
        sum += __builtin_convertvector(part, Doubles);
    }
    double all = 0;
    for (int l = 0; l < 8; ++l) all += sum[l];
    return all;
}

// Scales a matrix back to its largest norm; what it was before, or 0 if it was not beyond.
inline float bound(float* matrix, Index size, double limit) {
    const double norm = std::sqrt(inner(matrix, matrix, size));
    if (!(norm > limit)) return 0;
    const float factor = static_cast<float>(limit / norm);
    for (Index i = 0; i < size; ++i) matrix[i] *= factor;
    return static_cast<float>(norm);
}

// M' = M l / ||M||:  dM = l / ||M|| (dM' - M' <M', dM'> / l^2), in place
inline void unbound(float* gradient, const float* matrix, Index size, double limit, float norm) {
    if (norm == 0) return;
    const float share = static_cast<float>(inner(matrix, gradient, size) / (limit * limit));
    const float factor = static_cast<float>(limit / norm);
    for (Index i = 0; i < size; ++i) gradient[i] = factor * (gradient[i] - share * matrix[i]);
}

// What the chunk's updates are added to, or subtracted from; null: they stand alone.
inline float* base(End how, const float* gates, Matrix start, Matrix end, Index size) {
    if (how == STEP) return start.weights;
    if (how == UPDATES) return nullptr;
    for (Index i = 0; i < size; ++i) end.momentum[i] = gates[0] * start.momentum[i];
    return end.momentum;
}

// After the updates; the norm if it was beyond its limit.
inline float finish(End how, const float* gates, Matrix start, Matrix end, Index size, double limit) {
    if (how == UPDATES) return 0;
    if (how == MOMENTUM) {
        const float alpha = 1.0f - gates[1];
        for (Index i = 0; i < size; ++i) end.weights[i] = alpha * start.weights[i] - end.momentum[i];
    }
    return bound(end.weights, size, limit);
}

// Gradients of the update, into `updates`, and of the memory at the start of the chunk, from `g` of the one at its end. A part of
// `g` may be null, and may lie where the same part of `to` does. Adds to `d_gates`.
inline void backward_end(
    End how, const float* gates, Matrix start, Matrix end, Matrix g, Index size, double limit, float norm, float* updates,
    Matrix to, float* d_gates
) {
    float* const given_weights = how == STEP ? to.weights : updates;
    if (!g.weights) std::fill_n(given_weights, size, 0.0f);
    else if (g.weights != given_weights) std::copy_n(g.weights, size, given_weights);
    if (g.weights) unbound(given_weights, end.weights, size, limit, norm);
    if (how == UPDATES) std::fill_n(to.weights, size, 0.0f);
    if (how == STEP)
        for (Index i = 0; i < size; ++i) updates[i] = -given_weights[i];
    if (how == MOMENTUM) {
        const float theta = gates[0], alpha = 1.0f - gates[1];
        d_gates[1] -= static_cast<float>(inner(updates, start.weights, size));
        for (Index i = 0; i < size; ++i) {
            const float given = updates[i];
            to.weights[i] = alpha * given;
            updates[i] = (g.momentum ? g.momentum[i] : 0.0f) - given;
            to.momentum[i] = theta * updates[i];
        }
        d_gates[0] += static_cast<float>(inner(updates, start.momentum, size));
    }
}

}  // namespace atlas
