"""Old names of modules, refused by a sentence that says where each is now."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType

MODULES = {
    "files": "core.atomic",
    "registry": "core.registry",
    "concepts": "core.concepts",
    "prompts": "core.prompts",
    "memory": "core.memory",
    "evidence": "metrics.relearning",
    "forgetting": "metrics.profile",
    "revival": "metrics.revival",
    "edits": "patch.edits",
    "hooks": "patch.hooks",
    "compose": "patch.algebra",
    "lora_files": "exchange.lora",
    "export": "exchange.export",
    "imports": "exchange.import_",
    "models.pairs": "data.pairs",
    "sources": "data.sources",
    "captioned": "data.read",
    "models.interview": "data.questions",
    "models.pictures": "toolbox.pictures",
    "models.stable_diffusion": "models.families.sd",
    "models.attention": "toolbox.attention",
    "models.checkpointing": "toolbox.checkpointing",
    "models.checks": "toolbox.checks",
    "models.clip_training": "toolbox.clip_training",
    "models.closed_form": "toolbox.closed_form",
    "models.correlation": "toolbox.correlation",
    "models.denoising": "toolbox.denoising",
    "models.gradients": "toolbox.gradients",
    "models.inversion": "toolbox.inversion",
    "models.latents": "toolbox.latents",
    "models.null_space": "toolbox.null_space",
    "models.soft_tokens": "toolbox.soft_tokens",
    "models.single_layer": "toolbox.layer_search",
    "models.contrast": "toolbox.clip_losses",
    "optimise": "toolbox.optimise",
    "recover.curve": "toolbox.relearning_curve",
    "recover.trials": "toolbox.prompt_attack",
    "recover.finetune": "toolbox.finetune",
    "recover.curricula": "toolbox.curricula",
    "recover.lora": "toolbox.lora",
    "recover.memora_pictures": "toolbox.interpolation",
    "judge.classifier": "judge.world",
    "gallery": "runs.images",
    "attempts": "runs.store",
    "bench": "runs.runner",
    "panel": "runs.scoring",
    "lesson_bench": "runs.lessons",
    "clip_bench": "runs.clip_lessons",
    "llava_bench": "runs.llava_lessons",
    "theme_bench": "runs.theme_runs",
    "themes": "world.themes",
    "imagefolder": "runs.imagefolder",
    "world.pairs": "world.datasets",
    "world.train": "world.make.train",
    "world.train_clip": "world.make.train_clip",
    "world.train_judge": "world.make.train_judge",
    "world.train_llava": "world.make.train_llava",
    "world.train_unet": "world.make.train_unet",
    "world.train_vae": "world.make.train_vae",
    "world.training": "world.make.training",
    "world.networks": "world.make.networks",
    "world.check": "world.make.check",
    "report.material": "report.load",
    "report.words": "report.prose",
    "report.answers": "report.sections.answers",
    "report.figures": "report.sections.figures",
    "report.grid": "report.sections.grid",
    "report.layers": "report.sections.layers",
    "report.lessons": "report.sections.lessons",
    "report.notes": "report.sections.notes",
    "report.profile": "report.sections.profile",
    "report.table": "report.sections.table",
    "report.themes": "report.sections.themes",
    "cli.show": "cli.console",
    "types": "methods",
}
"""Module as it was called before the rooms were made → as it is called now."""


SETTINGS = {
    "sampling_steps": "steps of the nested setting that samples, such as latents.steps",
    "guidance": "guidance of the nested setting that samples, such as latents.guidance",
    "batch": "latents.batch",
    "pictures": "pictures of the nested setting that samples, such as drawn.pictures",
    "retain_pictures": "retain.pictures",
    "forget_folder": "forget.folder",
    "retain_folder": "retain.folder",
    "folder": "folder of the nested setting that samples, such as drawn.folder",
    "wordings": "latents.wordings",
    "measure_pictures": "measure.pictures",
    "judged_by": "measure.by",
    "least_known": "measure.least_known",
    "source": "data.source",
    "related": "data.related",
    "render_with": "data.render_with",
    "allow_target": "data.allow_target",
    "pairs": "interpolation.pairs",
    "between": "interpolation.between",
    "join": "interpolation.join",
    "count": "interpolation.count",
    "start_step": "interpolation.start_step",
    "offset": "interpolation.offset",
}
"""Setting of a method as it was called → as it is called now."""


class Moved(MetaPathFinder):
    """Refuse the import of a module by its old name."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> None:
        """Raise ModuleNotFoundError for an old name; know nothing of any other."""
        package, _, old = name.partition(".")
        if package == "palimpsest" and old in MODULES:
            raise ModuleNotFoundError(f"{name} is now palimpsest.{MODULES[old]}", name=name)


def refuse_old_names() -> None:
    """Let every import pass by here, once."""
    if not any(isinstance(finder, Moved) for finder in sys.meta_path):
        sys.meta_path.insert(0, Moved())
