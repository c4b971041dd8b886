"""The memory's chunk scan as one Triton kernel, a program for each row: the same as `FusedChunk`, the update of a
`ChunkEnd` and `bound_norm` for all chunks of a stretch. Its backward pass: `triton_scan_backward.py`.

The weights W1, W2, W3 stay on the chip from the first chunk to the last. A chunk of C tokens is M = ceil(C / R) tiles
of R tokens: W are the weights at the chunk's start, R those minus the updates of the chunk's earlier tiles. What a
token reads of earlier tiles is in R, what it reads of its own tile comes by masked Gram products, so no product is
C x C. A tile that the chunk does not fill is filled up with tokens of rate 0.

Legend: `triton_tiles.py`, and N rows, n chunks, C tokens of each, M tiles of a chunk.
"""

# Triton's language is not typed, and its names follow the equations.
# mypy: ignore-errors
# ruff: noqa: E741, N803, RUF059

from __future__ import annotations

import triton
import triton.language as tl

from atlas.kernels.triton_tiles import (
    ANY,
    bounded,
    dot,
    down,
    gate,
    keep,
    linear,
    put,
    put_tokens,
    reads,
    tokens,
    tril,
    weights,
    writes,
    written,
)


@triton.jit(do_not_specialize=ANY, do_not_specialize_on_alignment=["rate"])
def scan_forward(
    q, k, v, pq, pk, rate, gates, start, out, states, momenta, scales, end, momentum,
    q_row, q_token, k_row, k_token, v_row, v_token, pq_row, pq_token, pk_row, pk_token, rate_row, rate_token,
    chunks, bound_down, bound_up,
    C: tl.constexpr, R: tl.constexpr, D: tl.constexpr, H: tl.constexpr, P: tl.constexpr,
    PREFIX: tl.constexpr, MOMENTUM: tl.constexpr, KEEP: tl.constexpr, PRODUCTS: tl.constexpr,
):  # fmt: skip
    """`end` [N, STATE] holds the weights at the chunk's start, and at last those after all chunks; `momentum`
    [N, STATE] the momentum, given and left. With KEEP the backward pass gets `states` [N, n, M, STATE], the weights
    before every tile (without PREFIX [N, n, STATE], those before every chunk), `momenta` [N, n, STATE], S before every
    chunk, and `scales` [N, n, 2] of every chunk's end."""
    n = tl.program_id(0).to(tl.int64)
    k, v, pk, rate = k + n * k_row, v + n * v_row, pk + n * pk_row, rate + n * rate_row
    token = tl.arange(0, R)
    STATE: tl.constexpr = D * H + 2 * H * P
    M: tl.constexpr = (C + R - 1) // R
    here = end + n * STATE
    R1, R2, R3 = weights(start + n * STATE, D, H, P)
    for c in range(chunks):
        if M > 1 or MOMENTUM:
            tl.debug_barrier()
            put(here, R1, R2, R3, D, H, P)
            tl.debug_barrier()
        if MOMENTUM:  # R is what the updates add to W: in the difference of two weights its last digits would be lost
            R1 = tl.zeros((D, H), tl.float32)
            R2 = tl.zeros((H, P), tl.float32)
            R3 = tl.zeros((H, P), tl.float32)
        for i in range(M):
            if M == 1 and not MOMENTUM:
                W1, W2, W3 = R1, R2, R3
            else:
                W1, W2, W3 = weights(here, D, H, P)
            if MOMENTUM:
                L1, L2, L3 = W1 + R1, W2 + R2, W3 + R3
            else:
                L1, L2, L3 = R1, R2, R3
            if KEEP:
                if PREFIX:
                    keep(states + ((n * chunks + c) * M + i) * STATE, L1, L2, L3, D, H, P, PRODUCTS)
                elif i == 0:
                    keep(states + (n * chunks + c) * STATE, L1, L2, L3, D, H, P, PRODUCTS)
            valid = i * R + token < C
            first = c * C + i * R
            K, V, PK, eta = written(k, v, pk, rate, first, k_token, v_token, pk_token, rate_token, valid, R, D, P)
            A3, sigmoid, silu, slope, U, F, r, E, B, X2, X3 = writes(K, V, PK, eta, W1, W2, W3, PRODUCTS)
            PQ = tokens(pq + n * pq_row, first, pq_token, valid, R, P)
            O = tokens(q + n * q_row, first, q_token, valid, R, D)
            if PREFIX:
                G, P3, read_sigmoid, read_silu = reads(PK, PQ, X2, X3, L2, L3, R, PREFIX, PRODUCTS)
                Z = read_silu * P3
                O += dot(Z, L1.T, PRODUCTS) - dot(tril(dot(Z, U.T, PRODUCTS), R), E, PRODUCTS)
            else:
                G, P3, read_sigmoid, read_silu = reads(PK, PQ, X2, X3, W2, W3, R, PREFIX, PRODUCTS)
                O += dot(read_silu * P3, W1.T, PRODUCTS)
            put_tokens(out + n * chunks * C * D, first, O, valid, R, D)
            R1 -= dot(E.T, U, PRODUCTS)
            R2 -= dot(X2.T, PK, PRODUCTS)
            R3 -= dot(X3.T, PK, PRODUCTS)
        if MOMENTUM:
            theta = tl.load(gates + (n * chunks + c) * 2)
            alpha = 1 - tl.load(gates + (n * chunks + c) * 2 + 1)
            kept = momentum + n * STATE
            S1, S2, S3 = weights(kept, D, H, P)
            if KEEP:
                keep(momenta + (n * chunks + c) * STATE, S1, S2, S3, D, H, P, PRODUCTS)
            W1 = down(here, D, H)
            S1 = theta * S1 - R1
            R1 = alpha * W1 - S1
            W2 = gate(here, D, H, P)
            S2 = theta * S2 - R2
            R2 = alpha * W2 - S2
            W3 = linear(here, D, H, P)
            S3 = theta * S3 - R3
            R3 = alpha * W3 - S3
            tl.debug_barrier()
            put(kept, S1, S2, S3, D, H, P)
        s1 = bounded(tl.sum(R1 * R1), bound_down)
        s23 = bounded(tl.sum(R2 * R2) + tl.sum(R3 * R3), bound_up)
        R1 *= s1
        R2 *= s23
        R3 *= s23
        if KEEP:
            tl.store(scales + (n * chunks + c) * 2, s1)
            tl.store(scales + (n * chunks + c) * 2 + 1, s23)
    tl.debug_barrier()
    put(here, R1, R2, R3, D, H, P)
