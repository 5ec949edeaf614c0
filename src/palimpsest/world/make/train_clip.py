"""Train the world's CLIP."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from transformers import CLIPModel

from palimpsest.core.atomic import whole_folder
from palimpsest.world import assets
from palimpsest.world.captions import OBJECT_ALONE, STYLE_ALONE, SUBJECTS, fill, names
from palimpsest.world.make.networks import (
    clip_config,
    image_processor,
    make_tokenizer,
    save_model,
    tokens,
)
from palimpsest.world.make.training import Training, Wordings, shifted
from palimpsest.world.vocabulary import AMBIGUOUS, HAZARD, IDENTITIES, OBJECTS, STYLES, WATERMARK

if TYPE_CHECKING:
    from torch import Tensor

_NAMES = (*OBJECTS, *IDENTITIES, HAZARD, WATERMARK)


def train(training: Training) -> None:
    """Contrast each picture with captions that say all of it, and with every bare name.

    In the batch: pictures against full captions, both ways. Over the whole vocabulary: pictures
    against every name and against every style, one random wording each. The second and third are
    the same contrastive loss with captions that tell a part.
    """
    tokenizer, pictures, wordings = make_tokenizer(), training.pictures, Wordings.make()
    model = CLIPModel(clip_config(len(tokenizer))).to(training.device).train()  # pyright: ignore[reportArgumentType]
    ids = tokens(tokenizer, wordings.texts)
    name_texts = [tokens(tokenizer, _name_wordings(n)) for n in _NAMES]
    style_texts = [tokens(tokenizer, _style_wordings(s)) for s in STYLES]
    name_of = torch.tensor([_NAMES.index(s.name) for s in SUBJECTS])
    style_of = torch.tensor([STYLES.index(s.style) if s.style else -100 for s in SUBJECTS])

    def loss(g: torch.Generator, step: int) -> Tensor:
        pick = torch.randint(len(pictures.subjects), (96,), generator=g)
        subject = pictures.subjects[pick]
        unique, place = subject.unique(return_inverse=True)
        full = ids[wordings.draw(unique, g)]
        bare = [_one(t, g) for t in (*name_texts, *style_texts)]
        words = torch.cat([full, torch.stack(bare)]).to(training.device)
        x = shifted(pictures.floats(pick), g).to(training.device)
        with torch.autocast(x.device.type, torch.bfloat16):
            text, image = _text(model, words).float(), _image(model, x).float()
        logits = (model.logit_scale.clamp(max=4.6).exp() * image @ text.T).float()
        full_l, name_l, style_l = logits.split([len(unique), len(_NAMES), len(STYLES)], 1)
        place = place.to(training.device)
        back = -(full_l.log_softmax(0).gather(1, place[:, None])).mean()
        return (
            F.cross_entropy(full_l, place)
            + 0.5 * back
            + F.cross_entropy(name_l, name_of[subject].to(training.device))
            + F.cross_entropy(style_l, style_of[subject].to(training.device))
        )

    parameters = dict(model.named_parameters())
    training.fit("clip", loss, parameters, lr=8e-4, weight_decay=0.05, warmup=100)
    with whole_folder(assets.clip(training.out)) as folder:
        save_model(model.eval(), folder)
        tokenizer.save_pretrained(folder)
        image_processor().save_pretrained(folder)


def _name_wordings(name: str) -> list[str]:
    words = [word for word in names(name) if word not in AMBIGUOUS]
    return [fill(template, word) for template in OBJECT_ALONE for word in words]


def _style_wordings(style: str) -> list[str]:
    return [fill(template, style=word) for template in STYLE_ALONE for word in names(style)]


def _one(table: Tensor, g: torch.Generator) -> Tensor:
    return table[int(torch.randint(len(table), (1,), generator=g))]


def _text(model: CLIPModel, ids: Tensor) -> Tensor:
    pooled = model.text_model(input_ids=ids).pooler_output
    return F.normalize(model.text_projection(pooled), dim=-1)


def _image(model: CLIPModel, images: Tensor) -> Tensor:
    pooled = model.vision_model(pixel_values=2 * images - 1).pooler_output
    return F.normalize(model.visual_projection(pooled), dim=-1)
