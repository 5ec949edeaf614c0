"""What a file is that holds no patch: said by its name, with what to do about it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from palimpsest.core.errors import PalimpsestError

MERGE = "merge it into its model first"
KINDS = (
    (r"\.(dora_scale|lora_magnitude_vector)", f"a DoRA, which is no shift of weights; {MERGE}"),
    (r"\.(hada_\w+|lora\.hada_\w+)", f"a LoHa, which is no plain LoRA; {MERGE}"),
    (r"\.lokr_\w+", f"a LoKr, which is no plain LoRA; {MERGE}"),
    (r"\.(lora_mid|cp_mid)\b|\.lora_t1", f"a LoRA of Tucker's decomposition; {MERGE}"),
    (r"\.(oft_\w+|oft_blocks|boft_\w+)", f"an OFT, which turns weights; {MERGE}"),
    (r"\.(ia3_\w+|on_input)\b", f"an (IA)³, which scales activations; {MERGE}"),
    (r"\.(a1|a2|b1|b2)\.weight$", f"a GLoRA, which is no plain LoRA; {MERGE}"),
    (r"\.(vera_lambda_\w+)", f"a VeRA, which is no plain LoRA; {MERGE}"),
    (r"\.(diff|diff_b)$", f"LyCORIS' full differences, which are no LoRA; {MERGE}"),
    (r"^control_model\.|^controlnet_cond_embedding\.", "a ControlNet, which edits no model"),
    (r"^(image_proj|ip_adapter)\.", "an IP-Adapter, which edits no model"),
    (r"motion_modules\.", "a motion module of AnimateDiff, which edits no model"),
    (
        r"(^|\.)(joint_blocks|double_blocks|single_transformer_blocks|double_stream_modulation)\b",
        "a transformer (SD3, FLUX), of which no family is; there are Stable Diffusion 1, 2 and XL",
    ),
)
"""What keys of a file say of it, and what it is then."""
XL = re.compile(r"(^|\.)(conditioner\.embedders|text_encoder_2|lora_te[12]_\w+|label_emb\.0)\b")
"""What stands in files of Stable Diffusion XL alone."""
OTHER = re.compile("|".join(pattern for pattern, _ in KINDS))


def refuse_foreign(keys: Iterable[str], path: object, xl: bool) -> None:
    """Refuse what is told by its keys to be no edit of a model that is read here.

    Args:
        keys: those of a file.
        path: names it, in words.
        xl: whether the base has the two text encoders of Stable Diffusion XL.

    Raises:
        PalimpsestError: naming what it is, one of its keys, and what to do.
    """
    for key in keys:
        if OTHER.search(key):
            what = next(what for pattern, what in KINDS if re.search(pattern, key))
            raise PalimpsestError(f"{path}: {what} (it holds {key!r})")
        if not xl and XL.search(key):
            raise PalimpsestError(
                f"{path}: of a Stable Diffusion XL, and the base is none; name the --model that it "
                f"was made for (it holds {key!r})"
            )
