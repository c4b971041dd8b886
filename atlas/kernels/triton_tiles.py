"""What the Triton kernels of the memory share: products, tiles of tokens, and the two halves of a tile's work.

A tile is R tokens. The symbols are those of `ops/whole_chunks/torch.py`; both passes are derived in docs/gpu.md.
Imports triton: see `gpu.py` for where it can be had.

Legend: R tokens of a tile, d head width, p feature width, h hidden width, STATE = d h + 2 h p numbers of W1 [d, h],
W2 [h, p], W3 [h, p] one after the other.
"""

# Triton's language is not typed, and its names follow the equations.
# mypy: ignore-errors
# ruff: noqa: N803, RET505

from __future__ import annotations

import triton
import triton.language as tl

# Numbers that differ from call to call: one kernel for all of them, so that what is compiled before a run is launched.
ANY = ["chunks", "count", "rate_row", "rate_token"]


@triton.jit
def nearest(x):
    """Rounded to bf16 and still float32, as a GPU rounds: to nearest, ties to even. The interpreter cuts the bits off,
    so a chain of products would lose 0.2 % at each operand, always in one direction."""
    bits = x.to(tl.float32).to(tl.int32, bitcast=True)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000).to(tl.float32, bitcast=True)


@triton.jit
def dot(a, b, PRODUCTS: tl.constexpr):
    """`emulated` rounds to bf16 and multiplies in float32: the interpreter multiplies bf16 as integers."""
    if PRODUCTS == "bf16":
        return tl.dot(a.to(tl.bfloat16), b.to(tl.bfloat16))
    elif PRODUCTS == "emulated":
        return tl.dot(nearest(a), nearest(b), input_precision="ieee")
    elif PRODUCTS == "tf32":
        return tl.dot(a, b, input_precision="tf32")
    else:
        return tl.dot(a, b, input_precision="ieee")


@triton.jit
def logistic(x):
    small = tl.exp(-tl.abs(x))  # never overflows
    return tl.where(x >= 0, 1.0, small) / (1 + small)


@triton.jit
def tril(x, R: tl.constexpr):
    token = tl.arange(0, R)
    return tl.where(token[:, None] >= token[None, :], x, 0.0)


@triton.jit
def tokens(base, first, stride, valid, R: tl.constexpr, WIDTH: tl.constexpr):
    """[R, WIDTH]; zeros where the tile is not filled."""
    offsets = (first + tl.arange(0, R)[:, None]) * stride + tl.arange(0, WIDTH)[None, :]
    return tl.load(base + offsets, mask=valid[:, None], other=0.0).to(tl.float32)


@triton.jit
def put_tokens(base, first, value, valid, R: tl.constexpr, WIDTH: tl.constexpr):
    offsets = (first + tl.arange(0, R)[:, None]) * WIDTH + tl.arange(0, WIDTH)[None, :]
    tl.store(base + offsets, value, mask=valid[:, None])


@triton.jit
def written(
    k, v, pk, rate, first, k_token, v_token, pk_token, rate_token, valid,
    R: tl.constexpr, D: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """Keys, values, phi(k) and rates of a tile's tokens, of one row."""
    K = tokens(k, first, k_token, valid, R, D)
    V = tokens(v, first, v_token, valid, R, D)
    PK = tokens(pk, first, pk_token, valid, R, P)
    at = rate + (first + tl.arange(0, R)) * rate_token
    return K, V, PK, tl.load(at, mask=valid, other=0.0).to(tl.float32)


@triton.jit
def place(base, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    return base + tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]


# Weights keep the type that they are kept in: what goes to a product in bf16 needs half the registers so.


@triton.jit
def down(at, D: tl.constexpr, H: tl.constexpr):
    return tl.load(place(at, D, H))


@triton.jit
def gate(at, D: tl.constexpr, H: tl.constexpr, P: tl.constexpr):
    return tl.load(place(at + D * H, H, P))


@triton.jit
def linear(at, D: tl.constexpr, H: tl.constexpr, P: tl.constexpr):
    return tl.load(place(at + D * H + H * P, H, P))


@triton.jit
def weights(at, D: tl.constexpr, H: tl.constexpr, P: tl.constexpr):
    return down(at, D, H), gate(at, D, H, P), linear(at, D, H, P)


@triton.jit
def put(at, M1, M2, M3, D: tl.constexpr, H: tl.constexpr, P: tl.constexpr):
    tl.store(place(at, D, H), M1)
    tl.store(place(at + D * H, H, P), M2)
    tl.store(place(at + D * H + H * P, H, P), M3)


@triton.jit
def keep(at, M1, M2, M3, D: tl.constexpr, H: tl.constexpr, P: tl.constexpr, PRODUCTS: tl.constexpr):
    """For the backward pass: in half precision the products round what is kept all the same."""
    if PRODUCTS == "emulated":
        put(at, nearest(M1), nearest(M2), nearest(M3), D, H, P)
    else:
        put(at, M1, M2, M3, D, H, P)


@triton.jit
def writes(K, V, PK, rate, W1, W2, W3, PRODUCTS: tl.constexpr):
    """The gradients of a tile's tokens at the weights W, in factored form, and what their backward pass needs."""
    A2 = dot(PK, W2.T, PRODUCTS)
    A3 = dot(PK, W3.T, PRODUCTS)
    sigmoid = logistic(A2)
    silu = A2 * sigmoid
    slope = sigmoid + silu * (1 - sigmoid)
    U = silu * A3
    F = K + dot(U, W1.T, PRODUCTS) - V
    r = tl.rsqrt(1 + tl.sum(F * F, 1))
    E = F * (r * rate)[:, None]
    B = dot(E, W1, PRODUCTS)
    return A3, sigmoid, silu, slope, U, F, r, E, B, B * A3 * slope, B * silu


@triton.jit
def reads(PK, PQ, X2, X3, W2, W3, R: tl.constexpr, PREFIX: tl.constexpr, PRODUCTS: tl.constexpr):
    """The hidden layer that the queries of a tile meet, from the weights W before the tile."""
    P2 = dot(PQ, W2.T, PRODUCTS)
    P3 = dot(PQ, W3.T, PRODUCTS)
    G = tl.zeros((R, R), tl.float32)
    if PREFIX:
        G = tril(dot(PQ, PK.T, PRODUCTS), R)
        P2 -= dot(G, X2, PRODUCTS)
        P3 -= dot(G, X3, PRODUCTS)
    sigmoid = logistic(P2)
    return G, P3, sigmoid, P2 * sigmoid


@triton.jit
def bounded(square, bound):
    # Not bound * rsqrt(max(square, bound^2)): that rounds to just below 1 inside the bound, and 1 means untouched.
    beyond = square > bound * bound
    return tl.where(beyond, bound * tl.rsqrt(tl.where(beyond, square, 1.0)), 1.0)
