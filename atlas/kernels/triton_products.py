"""Causal products of the Q-K projection as two Triton kernels, a program for each row. Equations: `ops/qk_projection/`.

The matrix stays on the chip from the first token to the last. Nothing is kept for the backward pass: it starts from the
last matrix and takes the products off again, which are the same bits.

Legend: N rows, T tokens, R tokens of a tile, D head width.
"""

# Triton's language is not typed, and its names follow the equations.
# mypy: ignore-errors
# ruff: noqa: E741, N803

from __future__ import annotations

import triton
import triton.language as tl

from atlas.kernels.triton_tiles import ANY, dot, put_tokens, tokens, tril


@triton.jit(do_not_specialize=ANY)
def products_forward(
    start, q, k, out, total, q_row, q_token, k_row, k_token, count,
    R: tl.constexpr, D: tl.constexpr, PRODUCTS: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0).to(tl.int64)
    square = tl.arange(0, D)[:, None] * D + tl.arange(0, D)[None, :]
    M = tl.load(start + n * D * D + square)
    for first in range(0, count, R):
        valid = first + tl.arange(0, R) < count
        Q = tokens(q + n * q_row, first, q_token, valid, R, D)
        K = tokens(k + n * k_row, first, k_token, valid, R, D)
        O = dot(Q, M, PRODUCTS) + dot(tril(dot(Q, K.T, PRODUCTS), R), K, PRODUCTS)
        put_tokens(out + n * count * D, first, O, valid, R, D)
        M += dot(K.T, K, PRODUCTS)
    tl.store(total + n * D * D + square, M)


@triton.jit(do_not_specialize=ANY)
def products_backward(
    q, k, total, d_out, d_total, d_start, d_q, d_k, q_row, q_token, k_row, k_token, out_row, out_token, count,
    R: tl.constexpr, D: tl.constexpr, PRODUCTS: tl.constexpr,
):  # fmt: skip
    """Tiles in reverse. M is the matrix before the tile, A the gradient of the matrix after it."""
    n = tl.program_id(0).to(tl.int64)
    square = tl.arange(0, D)[:, None] * D + tl.arange(0, D)[None, :]
    M = tl.load(total + n * D * D + square)
    A = tl.load(d_total + n * D * D + square)
    tiles = (count + R - 1) // R
    for back in range(tiles):
        first = (tiles - 1 - back) * R
        valid = first + tl.arange(0, R) < count
        Q = tokens(q + n * q_row, first, q_token, valid, R, D)
        K = tokens(k + n * k_row, first, k_token, valid, R, D)
        dO = tokens(d_out + n * out_row, first, out_token, valid, R, D)
        M -= dot(K.T, K, PRODUCTS)
        G = tril(dot(Q, K.T, PRODUCTS), R)
        dG = tril(dot(dO, K.T, PRODUCTS), R)
        dQ = dot(dO, M.T, PRODUCTS) + dot(dG, K, PRODUCTS)
        dK = dot(K, A + A.T, PRODUCTS) + dot(G.T, dO, PRODUCTS) + dot(dG.T, Q, PRODUCTS)
        put_tokens(d_q + n * count * D, first, dQ, valid, R, D)
        put_tokens(d_k + n * count * D, first, dK, valid, R, D)
        A += dot(Q.T, dO, PRODUCTS)
    tl.store(d_start + n * D * D + square, A)
