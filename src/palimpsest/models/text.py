"""The text side of models that read CLIP: one tokenizer, one or more of CLIP's text towers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from palimpsest.core.errors import PalimpsestError
from palimpsest.models.protocol import Call, Conditioning, TokenSlots

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import CLIPTextModel, CLIPTokenizer


def padded(tokenizer: CLIPTokenizer, texts: Sequence[str], window: int) -> Tensor:
    """Return (n, window) token ids of texts, padded and cut, on the CPU."""
    return tokenizer(
        list(texts),
        padding="max_length",
        truncation=True,
        max_length=window,
        return_tensors="pt",
    ).input_ids


@contextmanager
def injected(table: nn.Module, slots: TokenSlots | None) -> Iterator[None]:
    """Let an embedding table answer with vectors in place of some tokens.

    Gradients reach the vectors, and through a view of a model also the shifts under training.
    """
    if slots is None:
        yield
        return

    def put(module: Any, args: Any, out: Tensor) -> Tensor:
        out = out.clone()
        out[slots.where] = slots.vectors.to(out)
        return out

    with table.register_forward_hook(put):
        yield


@dataclass
class ClipText:
    """One of CLIP's text towers, whose last hidden states the denoiser reads."""

    tokenizer: CLIPTokenizer
    encoder: CLIPTextModel
    component: str = "text_encoder"
    """The component that the encoder is adopted as."""
    guides: bool = True
    """The empty prompt is where guidance starts."""
    unread: tuple[str, ...] = ()
    """What the names of parameters begin with that no part depends on."""

    def __post_init__(self) -> None:
        own: Any = self.tokenizer
        self.window, self.begin = int(own.model_max_length), int(own.bos_token_id)
        self.end, self.pad = int(own.eos_token_id), int(own.pad_token_id)
        self.special = tuple(own.all_special_ids)
        self.table = self.encoder.get_input_embeddings()
        names = dict(self.encoder.named_parameters())
        weight = next(name for name, p in names.items() if p is self.table.weight)
        self.tables = (f"{self.component}.{weight}",)
        self.width = int(self.encoder.config.hidden_size)

    def ids(self, prompts: Sequence[str]) -> Tensor:
        """Return (n, window) token ids, padded and cut, on the CPU."""
        return padded(self.tokenizer, prompts, self.window)

    def plain(self, text: str) -> list[int]:
        """Return the token ids of a text, without begin and end."""
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def lengths(self, prompts: Sequence[str]) -> list[int]:
        """Return how many tokens each prompt has within the window, begin and end included."""
        return [min(len(row), self.window) for row in self.tokenizer(list(prompts)).input_ids]

    def overlong(self, prompts: Sequence[str]) -> list[int]:
        """Return the positions of the prompts that do not fit the window and will be cut."""
        ids = self.tokenizer(list(prompts)).input_ids
        return [i for i, row in enumerate(ids) if len(row) > self.window]

    def span(self, prompt: str, words: str) -> list[int]:
        """Return every token position of `prompt` that belongs to an occurrence of `words`.

        Raises:
            PalimpsestError: the prompt does not contain the words, or not within the window.
        """
        whole = self.tokenizer(prompt, truncation=True, max_length=self.window).input_ids
        part = self.plain(words)
        starts = [i for i in range(len(whole)) if part and whole[i : i + len(part)] == part]
        if not starts and self.overlong([prompt]):
            raise PalimpsestError(
                f"the prompt {prompt!r} is longer than the model's window of {self.window} tokens "
                f"and is cut before {words!r} ends; shorten it"
            )
        if not starts:
            raise PalimpsestError(f"the prompt {prompt!r} does not contain {words!r}")
        return [i + k for i in starts for k in range(len(part))]

    def decode(self, ids: Sequence[int] | Tensor) -> str:
        """Return the text that token ids stand for, without the special ones."""
        own: Any = self.tokenizer
        return str(own.decode(ids, skip_special_tokens=True))

    def pieces(self) -> dict[str, int]:
        """Return every piece of text that has a token, with its id."""
        return dict(self.tokenizer.get_vocab())

    def encode(self, call: Call, ids: Tensor, slots: TokenSlots | None) -> dict[str, Tensor]:
        """Return (n, window, width) last hidden states of (n, window) token ids."""
        with injected(self.table, slots):
            return {"hidden": call(self.component, input_ids=ids).last_hidden_state}

    def empty(self, call: Call, device: torch.device) -> Conditioning | None:
        """Return the embedded empty prompt."""
        ids = self.ids([""]).to(device)
        return Conditioning(self.encode(call, ids, None), ids)
