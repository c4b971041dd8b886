"""An atlas model for the library `transformers`: its cache is the state of the memories and of attention.

`python -m atlas.export` copies this file beside the weights; `from_pretrained(DIR, trust_remote_code=True)` executes
the copy, so it names all that it needs absolutely. The model itself comes from the installed package.

Legend: B sequences, T tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Cache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.deprecation import deprecate_kwarg

try:
    from omegaconf import OmegaConf

    from atlas.config import ChunkSizeConfig, ModelConfig, require
    from atlas.config.arguments import require_lasting, require_lasting_of
    from atlas.models.language_model import AtlasModel, ModelState
except ImportError as error:
    raise ImportError(
        "this model needs the package atlas-test-time-memory: in a checkout of it, pip install -c constraints.txt -e ."
        f" (`atlas` on PyPI is another project): {error}"
    ) from error


ALIGNMENT = 64  # bytes, of torch's own tensors


class AtlasConfig(PreTrainedConfig):
    """`model` and `chunk_size` are the groups of an atlas run; a value out of range raises `ConfigError`. `memory` is
    how every call reads that says nothing else. `lasting`: of a text longer than `trained_length` [tokens], writes of
    the global memory at smaller rates last for that length only."""

    model_type = "atlas_mag"
    model: dict[str, Any] | None = None
    chunk_size: dict[str, Any] | None = None
    vocab_size: int = 256
    memory: str = "learn"
    lasting: float = 0.0
    trained_length: int = 0

    def settings(self) -> tuple[ModelConfig, ChunkSizeConfig]:
        """The two groups with their checks."""
        given = ((ModelConfig, self.model or {}), (ChunkSizeConfig, self.chunk_size or {}))
        model, chunks = (OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), keys)) for kind, keys in given)
        assert isinstance(model, ModelConfig)
        assert isinstance(chunks, ChunkSizeConfig)
        return model, chunks


class MemoryCache(Cache):
    """The state after the tokens read so far. With a window its size does not depend on their number."""

    def __init__(self, state: ModelState) -> None:
        super().__init__(layers=[])
        self.state = state

    is_linear = (False,)  # it counts its tokens: `generate` leaves out those that it has read
    is_compileable = is_croppable = False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.state.position

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the sequences `beam_idx` [B]."""
        sequences = self.state.split()
        self.state = ModelState.join([sequences[index] for index in beam_idx.tolist()])

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.state = ModelState.join([one for one in self.state.split() for _ in range(repeats)])


class AtlasForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = AtlasConfig
    base_model_prefix = "model"
    _no_split_modules = ("AtlasMAGBlock",)

    def __init__(self, config: AtlasConfig) -> None:
        super().__init__(config)
        model, chunks = config.settings()
        self.model = AtlasModel(model, chunks, config.vocab_size)
        require_lasting(config.lasting)
        require_lasting_of(model, config.lasting)
        known = config.trained_length > 0 or not config.lasting
        require(known, "trained_length", config.trained_length, "given with lasting, in tokens")
        self.model.plan = self.model.plan.with_lasting(config.lasting, config.trained_length)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *arguments: Any, **settings: Any) -> Any:
        """As the library's, with the weights where torch itself would put them.

        In a mapped file they start anywhere, and BLAS then adds the products of a single token in another order: the
        logits would not be bitwise those of `atlas.load`.
        """
        found = super().from_pretrained(*arguments, **settings)
        model = found[0] if isinstance(found, tuple) else found
        for parameter in model.parameters():
            if parameter.data_ptr() % ALIGNMENT:
                parameter.data = parameter.data.clone()
        return found

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Nothing: `AtlasModel` has drawn its weights."""

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.model.embedding

    @deprecate_kwarg("past_key_values", "5.40.0", new_name="cache")
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: MemoryCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        memory: str | None = None,
        return_dict: bool | None = None,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """input_ids [B, T] -> logits [B, T, V] in the model's precision, and the cache after them.

        `memory`: learn, frozen (reads its initial weights) or off. `labels` [B, T], -100 = ignored, give the mean loss
        in nats. Raises ValueError for a masked token: the memory learns from every token that it reads.
        """
        if attention_mask is not None and not bool((attention_mask != 0).all()):
            raise ValueError(
                "attention_mask has zeros: must be left out or all ones, the memory learns from every token."
                " Give texts of different lengths one at a time"
            )
        before = cache.state if isinstance(cache, MemoryCache) else None
        out = self.model(input_ids, before, mode=memory or self.config.memory)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(out.logits[:, :-1].float().flatten(0, 1), labels[:, 1:].flatten())
        after = None
        if use_cache is not False:
            after = cache if isinstance(cache, MemoryCache) else MemoryCache(out.state)
            after.state = out.state
        found = CausalLMOutputWithPast(loss=loss, logits=out.logits, cache=after)
        return found if return_dict is not False else found.to_tuple()

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The tokens that the cache has not read."""
        unread = input_ids if next_sequence_length is None else input_ids[:, -next_sequence_length:]
        kept = ("attention_mask", "use_cache", "memory")
        return {"input_ids": unread, "cache": cache, **{key: kwargs[key] for key in kept if key in kwargs}}

    def _prepare_cache_for_generation(self, *_: Any, **__: Any) -> None:
        """The first forward pass makes the cache."""
