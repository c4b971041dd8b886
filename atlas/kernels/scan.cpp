// Chunks of the dual form one after the other, forward and backward (chunk.h), and what happens at their ends
// (chunk_end.h). A row is one memory; rows are shared out among threads.

#include "chunk_backward.h"
#include "chunk_end.h"
#include "chunk_forward.h"

using namespace atlas;

namespace {

// One row of a ScanMemory.
struct Memory {
    Weights weights, momentum;
    Matrix down() const { return {weights.down, momentum.down}; }
    Matrix up() const { return {weights.up, momentum.up}; }
};

Memory row(const ScanSizes& s, const ScanMemory& memory, Index n) {
    const auto at = [n](const Tensor& matrix, Index size) { return matrix.data ? matrix.data + n * size : nullptr; };
    return {
        {at(memory.down, s.down()), at(memory.up, s.up())},
        {at(memory.momentum_down, s.down()), at(memory.momentum_up, s.up())},
    };
}

// What a row keeps of a chunk for the backward pass: its blocks, the norms before they were bounded, and the memory after
// it. Each chunk has its own tensor: the allocator reuses the memory of small ones.
struct Kept {
    Index down, up, norms, memory, total;
    bool momentum;
    Kept(const ScanSizes& s, const Layout& layout) : down(s.down()), up(s.up()), momentum(s.end == MOMENTUM) {
        norms = layout.total * layout.blocks(s);
        memory = norms + 8;
        total = memory + (down + up) * (momentum ? 2 : 1);
    }
    Memory after(float* own) const {
        float *weights = own + memory, *second = weights + down + up;
        return {{weights, weights + down}, momentum ? Weights{second, second + down} : Weights{nullptr, nullptr}};
    }
};

// What is the same for all chunks of a row.
class Row {
  public:
    Row(const ScanSizes& s, const ScanInputs& in, const Tensor* kept, const ScanMemory& after, Index n)
        : s(s), in(in), kept(kept), n(n), first(row(s, in.start, n)), last(row(s, after, n)), layout(s), parts(s, layout) {}

    void forward(float* out) const {
        for (Index c = 0; c < s.chunks; ++c) {
            const Memory start = before(c), end = after(c);
            const Weights sums = how() == MOMENTUM ? end.momentum : end.weights;
            Weights sum{
                base(how(), gates(c), start.down(), end.down(), s.down()),
                base(how(), gates(c), start.up(), end.up(), s.up()),
            };
            for (Index b = 0; b < layout.blocks(s); ++b) {
                arena().reset(Forward::floats(s));
                Forward(block(c, b), own(c) + b * layout.total).run(out, sum, sums);
                sum = sums;
            }
            float* norms = own(c) + parts.norms;
            std::fill_n(norms, 8, 0.0f);
            norms[0] = finish(how(), gates(c), start.down(), end.down(), s.down(), s.down_limit);
            norms[1] = finish(how(), gates(c), start.up(), end.up(), s.up(), s.up_limit);
        }
    }

    // `g`: gradients of the memory after the last chunk; `to`, of the one before the first, holds those between two chunks
    // on the way.
    void backward(float* g_out, const Memory& g, const Memory& to, float* d_gates, const TokenGradients& tokens) const {
        for (Index c = s.chunks - 1; c >= 0; --c) {
            arena().reset(Backward::floats(s) + s.down() + s.up() + 32);
            const Weights updates = backward_ends(c, c + 1 < s.chunks ? to : g, to, d_gates ? d_gates + gate(c) : nullptr);
            const Index mark = arena().used();
            for (Index b = 0; b < layout.blocks(s); ++b) {
                arena().release(mark);
                Backward(block(c, b), own(c) + b * layout.total, updates).run(g_out, to.weights, tokens);
            }
        }
    }

  private:
    const ScanSizes& s;
    const ScanInputs& in;
    const Tensor* const kept;
    const Index n;
    const Memory first, last;  // before the first chunk, after the last one
    const Layout layout;
    const Kept parts;

    End how() const { return static_cast<End>(s.end); }
    Index gate(Index c) const { return 2 * (n * s.chunks + c); }
    const float* gates(Index c) const { return in.gates.data ? in.gates.data + gate(c) : nullptr; }
    float* own(Index c) const { return kept[c % s.parts].data + n * parts.total; }
    Memory before(Index c) const { return c ? parts.after(own(c - 1)) : first; }
    Memory after(Index c) const { return c + 1 < s.chunks ? parts.after(own(c)) : last; }

    Block block(Index c, Index b) const {
        const Index token = b * layout.block, count = std::min(layout.block, s.count - token);
        return {s, in, before(c).weights, n, c * s.count + token, count};
    }

    // Gradients of the chunk's updates, null where nothing depends on them.
    Weights backward_ends(Index c, const Memory& g, const Memory& to, float* d_gates) const {
        const Memory start = before(c), end = after(c);
        const float* norms = own(c) + parts.norms;
        float *down = arena().take(s.down()), *up = arena().take(s.up());
        if (d_gates) d_gates[0] = d_gates[1] = 0;
        backward_end(
            how(), gates(c), start.down(), end.down(), g.down(), s.down(), s.down_limit, norms[0], down, to.down(), d_gates
        );
        backward_end(how(), gates(c), start.up(), end.up(), g.up(), s.up(), s.up_limit, norms[1], up, to.up(), d_gates);
        const bool down_live = g.weights.down || g.momentum.down, up_live = g.weights.up || g.momentum.up;
        return {down_live ? down : nullptr, up_live ? up : nullptr};
    }
};

struct ForwardResults {
    Tensor out;  // [N, T, d]
    ScanMemory after;  // the memory after the last chunk, or for UPDATES the chunk's updates
    Tensor kept[1];
};

struct BackwardInputs {
    ScanInputs in;
    ScanMemory after;
    Tensor d_out;
    ScanMemory d_after;  // null where nothing depends on that part of the memory after the last chunk
    Tensor kept[1];
};

struct BackwardResults {
    Tensor query, key, value, query_features, key_features, rate, gates;
    ScanMemory start;
};

ScanInputs with_features(const ScanSizes& s, ScanInputs in) {
    if (s.shared) in.query_features = in.query, in.key_features = in.key;
    return in;
}

}  // namespace

// Floats to keep per row and chunk.
extern "C" Index atlas_scan_floats(const ScanSizes* s) { return Kept(*s, Layout(*s)).total; }

extern "C" int atlas_scan_forward(const ScanSizes* sizes, const ScanInputs* in, const ForwardResults* to) {
    const ScanSizes s = *sizes;
    const ScanInputs all = with_features(s, *in);
    return for_rows(s.rows, s.threads, [&](Index n) { Row(s, all, to->kept, to->after, n).forward(to->out.data); });
}

extern "C" int atlas_scan_backward(const ScanSizes* sizes, const BackwardInputs* from, const BackwardResults* to) {
    const ScanSizes s = *sizes;
    const ScanInputs all = with_features(s, from->in);
    const TokenGradients tokens{to->query.data,          to->key.data,          to->value.data,
                                to->query_features.data, to->key_features.data, to->rate.data};
    return for_rows(s.rows, s.threads, [&](Index n) {
        const Memory given = row(s, from->d_after, n), start = row(s, to->start, n);
        Row(s, all, from->kept, from->after, n).backward(from->d_out.data, given, start, to->gates.data, tokens);
    });
}
