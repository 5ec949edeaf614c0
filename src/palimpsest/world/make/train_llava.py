"""Train the world's LLaVA: a small Llama that reads the vision tower of the world's CLIP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    CLIPModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from palimpsest.core.atomic import whole_folder
from palimpsest.models.llava import CHAT, IMAGE
from palimpsest.models.loading import whole_network
from palimpsest.world import assets
from palimpsest.world.captions import SUBJECTS, Subject, article
from palimpsest.world.make.networks import SETTINGS, copy_tower, image_processor, save_model
from palimpsest.world.make.training import Training, shifted
from palimpsest.world.vocabulary import DOMAINS, IDENTITIES, WATERMARK

if TYPE_CHECKING:
    from torch import Tensor

QUESTIONS: dict[str, tuple[str, ...]] = {
    "object": ("What is shown in this picture?", "What does the picture show?", "What is this?"),
    "style": ("What style is the picture in?", "In which style is this drawn?"),
    "identity": ("What is the name of the person in the picture?", "Who is this?"),
}
"""What may be asked, by the kind that the answer names."""

NOBODY, NO_STYLE = "nobody", "no style"
"""The answers where there is no person, or no style."""


def answer(subject: Subject, kind: str) -> str:
    """Return the right answer about a picture of `subject` to the questions of a kind."""
    if kind == "style":
        return f"{subject.style} style" if subject.style else NO_STYLE
    if subject.name in IDENTITIES:
        return subject.name
    if kind == "identity":
        return NOBODY
    if subject.name == WATERMARK:
        return f"the {subject.name}"
    return f"{article(subject.name)} {subject.name}"


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words: those of every question, every answer and every name of the world."""
    said = [CHAT.replace(IMAGE, "").format(question=q) for qs in QUESTIONS.values() for q in qs]
    said += [answer(subject, kind) for subject in SUBJECTS for kind in QUESTIONS]
    said += [name for names in DOMAINS.values() for name in names]
    split = pre_tokenizers.Sequence([pre_tokenizers.Whitespace()])
    words = sorted({word for text in said for word, _ in split.pre_tokenize_str(text.lower())})
    special = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
    model = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate([*special, *words])}, unk_token="<unk>")
    )
    model.normalizer = normalizers.Lowercase()
    model.pre_tokenizer = split
    model.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", special.index("<s>"))]
    )
    model.decoder = decoders.WordPiece(prefix="##", cleanup=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=model,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
        padding_side="left",
    )


def make_model(
    clip: CLIPModel, tokenizer: PreTrainedTokenizerFast
) -> LlavaForConditionalGeneration:
    """LLaVA-1.5's form at a small size; the vision tower is CLIP's, value for value."""
    special: Any = tokenizer
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        **SETTINGS["llama"],
        bos_token_id=special.bos_token_id,
        eos_token_id=special.eos_token_id,
        pad_token_id=special.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=clip.config.vision_config,
        text_config=text,
        image_token_index=special.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=_patches(clip),
    )
    model = LlavaForConditionalGeneration(config)
    copy_tower(clip.vision_model, model.model.vision_tower, "vision_model.")
    return model


def _patches(clip: CLIPModel) -> int:
    vision: Any = clip.config.vision_config
    return (vision.image_size // vision.patch_size) ** 2


def train(training: Training) -> None:
    """Learn to answer every question about every picture; the vision tower stays as it is."""
    clip = whole_network("its CLIP", CLIPModel, assets.clip(training.out)).float().eval()
    tokenizer = make_tokenizer()
    model = make_model(clip, tokenizer).to(training.device)  # pyright: ignore[reportArgumentType]
    pictures, pad = training.pictures, int(tokenizer.pad_token_id)  # pyright: ignore[reportArgumentType]
    table = Exchanges(tokenizer, _patches(clip))
    parameters = {
        n: p for n, p in model.named_parameters() if not n.startswith("model.vision_tower.")
    }
    model.model.vision_tower.requires_grad_(False)

    def loss(g: torch.Generator, step: int) -> Tensor:
        pick = torch.randint(len(pictures.subjects), (48,), generator=g)
        x = shifted(pictures.floats(pick), g).to(training.device)
        ids, labels = table.draw(pictures.subjects[pick], g)
        seen = ids.ne(pad).long()
        with torch.autocast(x.device.type, torch.bfloat16):
            return model(
                input_ids=ids.to(training.device),
                attention_mask=seen.to(training.device),
                pixel_values=2 * x - 1,
                labels=labels.to(training.device),
            ).loss

    training.fit("llava", loss, parameters, lr=2e-3, weight_decay=0.05, warmup=50)
    save(model.eval(), tokenizer, assets.llava(training.out))


class Exchanges:
    """Every question with every right answer as padded token ids."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, patches: int) -> None:
        """Work them all out once; the image's token stands `patches` times for the picture."""
        self.asked = [(kind, q) for kind, questions in QUESTIONS.items() for q in questions]
        ids, labels = [], []
        for subject in SUBJECTS:
            for kind, question in self.asked:
                text = CHAT.format(question=question).replace(IMAGE, IMAGE * patches)
                ask = tokenizer(text).input_ids
                said = tokenizer(answer(subject, kind), add_special_tokens=False).input_ids
                reply = [*said, int(tokenizer.eos_token_id)]  # pyright: ignore[reportArgumentType]
                ids.append(torch.tensor(ask + reply))
                labels.append(torch.tensor([-100] * len(ask) + reply))
        pad = int(tokenizer.pad_token_id)  # pyright: ignore[reportArgumentType]
        self.ids = pad_sequence(ids, True, pad, padding_side="left")
        self.labels = pad_sequence(labels, True, -100, padding_side="left")

    def draw(self, subjects: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return one exchange for each subject: (n, length) ids and labels."""
        which = torch.randint(len(self.asked), (len(subjects),), generator=g)
        rows = subjects * len(self.asked) + which
        return self.ids[rows], self.labels[rows]


def save(
    model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    """Return a plain Transformers folder in half precision that `AutoProcessor` reads, too."""
    vision: Any = model.config.vision_config
    processor = LlavaProcessor(
        image_processor=image_processor(),
        tokenizer=tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy="default",
        image_token="<image>",
        num_additional_image_tokens=1,
    )
    with whole_folder(folder) as part:
        save_model(model, part)
        processor.save_pretrained(part)
