"""Losses of a large vocabulary are made in pieces: the same losses and gradients, never all logits at once."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from atlas.config import ChunkSizeConfig, ModelConfig
from atlas.models import language_model
from atlas.models.language_model import AtlasModel

VOCABULARY = 1000


def model() -> AtlasModel:
    torch.manual_seed(0)
    config = ModelConfig(width=16, layers=1, heads=2, feedforward=16, persistent_keys=2)
    return AtlasModel(config, ChunkSizeConfig(local=[8], global_size=16, shard=16), VOCABULARY)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.elements = max(self.elements, made.numel())
        return made


def losses_and_gradients(subject: AtlasModel, tokens: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    losses = subject.losses(subject.read(tokens[:, :-1]).hidden, tokens[:, 1:])
    weights = torch.linspace(0, 1, losses.numel()).view_as(losses)
    return losses.detach(), list(
        torch.autograd.grad((losses * weights).sum(), list(subject.parameters()), allow_unused=True)
    )


@pytest.mark.parametrize("at_once", [VOCABULARY, 7 * VOCABULARY, 31 * VOCABULARY])
def test_pieces_give_the_losses_and_gradients_of_the_whole(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = model()
    tokens = torch.randint(VOCABULARY, (3, 33), generator=torch.Generator().manual_seed(1))
    logits = subject(tokens[:, :-1]).logits.double()
    expected = -logits.log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
    whole, gradients = losses_and_gradients(subject, tokens)
    torch.testing.assert_close(whole.double(), expected, rtol=1e-5, atol=1e-5)
    monkeypatch.setattr(language_model, "LOGITS_AT_ONCE", at_once)
    with Largest() as largest:
        in_pieces, in_pieces_gradients = losses_and_gradients(subject, tokens)
    torch.testing.assert_close(in_pieces, whole, rtol=1e-6, atol=1e-6)
    for piece, full in zip(in_pieces_gradients, gradients, strict=True):
        torch.testing.assert_close(piece, full, rtol=1e-4, atol=1e-5) if full is not None else None
    assert largest.elements <= max(at_once, VOCABULARY * 16)


def test_what_has_no_weight_gets_no_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = model()
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(VOCABULARY, (3, 33), generator=generator)
    weights = torch.rand(3, 32, generator=generator) * (torch.rand(3, 32, generator=generator) < 0.3)
    whole = subject.losses(subject.read(tokens[:, :-1]).hidden, tokens[:, 1:])
    wanted = torch.autograd.grad((whole * weights).sum(), list(subject.parameters()), allow_unused=True)
    monkeypatch.setattr(language_model, "LOGITS_AT_ONCE", 50 * VOCABULARY)
    with Largest() as largest:
        losses = subject.losses(subject.read(tokens[:, :-1]).hidden, tokens[:, 1:], weights)
        found = torch.autograd.grad((losses * weights).sum(), list(subject.parameters()), allow_unused=True)
    torch.testing.assert_close(losses, whole * (weights > 0), rtol=1e-6, atol=1e-6)
    for some, full in zip(found, wanted, strict=True):
        torch.testing.assert_close(some, full, rtol=1e-4, atol=1e-5) if full is not None else None
    assert largest.elements == int((weights > 0).sum()) * VOCABULARY
    with torch.no_grad():
        assert (subject.losses(subject.read(tokens[:, :-1]).hidden, tokens[:, 1:], weights * 0) == 0).all()


def test_one_piece_is_bitwise_the_loss_of_the_logits() -> None:
    subject = model()
    tokens = torch.randint(VOCABULARY, (3, 33), generator=torch.Generator().manual_seed(1))
    logits = subject(tokens[:, :-1]).logits
    plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    assert torch.equal(subject.losses(subject.read(tokens[:, :-1]).hidden, tokens[:, 1:]).flatten(), plain)
