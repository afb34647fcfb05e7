# SPDX-License-Identifier: GPL-3.0-or-later
"""Train SODA (in-graph)."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..soda_core.host.apply import apply_adapter
from ..soda_core.host.training import RunOptions, TrainingData, train_in_graph
from ..soda_core.kronecker import factor_presets
from ..soda_core.report.charts import loss_curve, to_image_tensor
from ..soda_core.targets import LAYER_PRESETS
from ..soda_core.training.settings import TrainSettings
from .common import CATEGORY, LossMapType, adapter_output, filename_prefix
from .graph import graph_metadata, progress_text

_DEFAULT = TrainSettings()
_LIST_INPUTS = ("latents", "positive", "base_positive", "class_latents", "class_positive", "negative")
_OPTION_INPUTS = (
    "filename_prefix",
    "trigger_phrase",
    "gradient_checkpointing",
    "save_every",
    "preview_every",
    "preview_steps",
)


def _rate(name: str, of: str) -> io.Input:
    return io.Float.Input(
        name,
        default=getattr(_DEFAULT, name),
        min=0.0,
        max=1.0,
        step=1e-6,
        round=False,
        tooltip=f"Learning rate of the {of}, per step. 5e-5 is the authors' value for 1000 steps on SDXL; fewer steps "
        "need a higher one. Nothing learnt: times three, again and again. Broken pictures: a third. 0 freezes this "
        "part.",
    )


class SodaTrain(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        d = _DEFAULT
        return io.Schema(
            node_id="SODATrain",
            display_name="Train SODA (in-graph)",
            category=f"{CATEGORY}/training",
            description="Trains a SODA adapter on the MODEL of the graph with three to ten pictures (one works): "
            "shifts the spectrum of its weights and rotates their basis with small orthogonal matrices. The file is "
            "saved as soon as training ends; cancelling keeps the adapter so far. The input MODEL is not changed.",
            search_aliases=["soda", "train lora", "dreambooth", "fine-tune", "personalization", "svdiff", "oft"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The base model to adapt. It is only read."),
                io.Latent.Input(
                    "latents", tooltip="Encoded training pictures: one batch, or a list (Make Training Dataset)."
                ),
                io.Conditioning.Input(
                    "positive", tooltip="Encoded captions: one for all pictures, or one for each in the same order."
                ),
                filename_prefix("subject"),
                io.String.Input(
                    "trigger_phrase",
                    default="",
                    tooltip="The phrase that calls your subject or style, e.g. 'sks dog'. Stored in the file and given "
                    "back by the loader; it does not change the captions.",
                ),
                io.Int.Input(
                    "steps",
                    default=d.steps,
                    min=1,
                    max=1_000_000,
                    tooltip="Optimiser steps. 1000 is the authors' value for a handful of pictures.",
                ),
                io.Int.Input(
                    "batch_size",
                    default=d.batch_size,
                    min=1,
                    max=1024,
                    tooltip="Pictures per forward pass. 1 (the authors' value) needs the least memory.",
                ),
                _rate("rotation_lr", "rotations (radians per step, about)"),
                _rate("shift_lr", "spectral shifts (in units of the singular values)"),
                io.Combo.Input(
                    "decomposition",
                    options=["svd", "qr"],
                    default=d.decomposition,
                    tooltip="What the shift acts on. svd: singular values (default, the paper's main method). qr: "
                    "the diagonal of the triangular factor, two to four times as fast to load.",
                ),
                io.Combo.Input(
                    "train",
                    options=["rotation + shift", "rotation only", "shift only"],
                    default=d.train,
                    tooltip="Which parts to train. Both is SODA (default); 'shift only' is SVDiff.",
                ),
                io.Combo.Input(
                    "layers",
                    options=list(LAYER_PRESETS),
                    default=d.layers,
                    tooltip="Which layers to adapt: "
                    + "; ".join(f"{name} = {text}" for name, text in LAYER_PRESETS.items())
                    + ". Attention is the paper's choice.",
                ),
                io.String.Input(
                    "layer_pattern",
                    default="",
                    advanced=True,
                    tooltip="For layers = pattern: wildcards over layer names, several separated by commas, "
                    "e.g. *attn2.to_k, *attn2.to_v",
                ),
                io.Combo.Input(
                    "factor_preset",
                    options=list(factor_presets()),
                    default=d.factor_preset,
                    advanced=True,
                    tooltip="Sizes of the Kronecker factors. auto = balanced, for any width (default); large = one of "
                    "up to 96 rows and one for the rest, for what auto cannot learn: ten times the parameters in "
                    "narrow layers (SD 1.5), hardly more in wide ones, in about the same time; svdiff-size and "
                    "oft-size are the authors' sets for SDXL's widths.",
                ),
                io.Int.Input(
                    "factor_count",
                    default=d.factor_count,
                    min=1,
                    max=8,
                    advanced=True,
                    tooltip="Number of Kronecker factors for factor_preset = auto. 2 (default) learned subjects on the "
                    "demo's model, 3 (the authors' number, on SDXL) only styles, with fewer parameters and in the "
                    "same time. 1 is one dense rotation.",
                ),
                io.Combo.Input(
                    "loss",
                    options=["dco", "mse", "min-snr"],
                    default=d.loss,
                    tooltip="dco (default, the authors'): improve on the base model's own loss, and no more; keeps "
                    "what the base can do, for a second forward pass a step. mse: plain denoising, follows the "
                    "pictures most closely. min-snr: mse with noise levels balanced.",
                ),
                io.Float.Input(
                    "dco_beta",
                    default=d.dco_beta,
                    min=1e-3,
                    max=1e6,
                    step=1.0,
                    advanced=True,
                    tooltip="For dco: how sharply improvement over the base is rewarded. 1000 is the authors' value "
                    "for SDXL. Learning that soon stops wants a smaller one: 30 was best on the demo's small model.",
                ),
                io.Float.Input(
                    "min_snr_gamma",
                    default=d.min_snr_gamma,
                    min=1e-3,
                    max=1e3,
                    step=0.1,
                    advanced=True,
                    tooltip="For min-snr: largest weight of clean noise levels. 5 is the paper's value.",
                ),
                io.Float.Input(
                    "prior_weight",
                    default=d.prior_weight,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                    advanced=True,
                    tooltip="Weight of the class pictures' loss (prior preservation), relative to the training "
                    "pictures' own; used when class_latents are connected. 1 is DreamBooth's value.",
                ),
                io.Combo.Input(
                    "schedule",
                    options=["constant", "cosine"],
                    default=d.schedule,
                    advanced=True,
                    tooltip="Learning rates over the run: constant (default, the authors') or cosine down to zero.",
                ),
                io.Int.Input(
                    "warmup_steps",
                    default=d.warmup_steps,
                    min=0,
                    max=1_000_000,
                    advanced=True,
                    tooltip="Steps over which the learning rates rise from zero. 0 (default) suits the small rates; "
                    "try 20 to 100 when a run diverges early.",
                ),
                io.Int.Input(
                    "accumulation",
                    default=d.accumulation,
                    min=1,
                    max=1024,
                    advanced=True,
                    tooltip="Batches per optimiser step. Above 1 acts like a larger batch without its memory.",
                ),
                io.Float.Input(
                    "gradient_clip",
                    default=d.gradient_clip,
                    min=0.0,
                    max=1000.0,
                    step=0.1,
                    advanced=True,
                    tooltip="Largest gradient norm; 1 is the authors' value, 0 turns clipping off.",
                ),
                io.Combo.Input(
                    "retraction",
                    options=["euler", "cayley", "exp"],
                    default=d.retraction,
                    advanced=True,
                    tooltip="How a step stays on the orthogonal group. euler is the authors' and the fastest; results "
                    "hardly differ.",
                ),
                io.Int.Input(
                    "seed",
                    default=d.seed,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Decides pictures, noise and noise levels of every step, and the preview's noise. The same "
                    "seed on the same machine gives the same adapter.",
                ),
                io.Combo.Input(
                    "training_dtype",
                    options=["auto", "bf16", "fp32", "model"],
                    default="auto",
                    tooltip="Precision of the model's own computation. auto (default): bf16 on GPUs that are fast at "
                    "it, fp32 elsewhere. bf16: half the memory. fp32: exact, best on a CPU. model: whatever the model "
                    "runs in. The adapter itself is always float32.",
                ),
                io.Boolean.Input(
                    "gradient_checkpointing",
                    default=False,
                    advanced=True,
                    tooltip="Recompute activations in the backward pass: less memory, half as long again or more. "
                    "Turn on when memory runs out.",
                ),
                io.Int.Input(
                    "save_every",
                    default=0,
                    min=0,
                    max=1_000_000,
                    advanced=True,
                    tooltip="Also save the adapter every so many steps (name-step00100_00001_); 0 = only at the end.",
                ),
                io.Int.Input(
                    "preview_every",
                    default=0,
                    min=0,
                    max=1_000_000,
                    tooltip="Every so many steps, and before the first (the base), sample the first caption at a fixed "
                    "seed: cfg 6 with negative connected, else 1. Shown on the node and kept in output/soda-previews, "
                    "where the next run of that name overwrites it; 0 = none (default: each is a whole sampling).",
                ),
                io.Int.Input(
                    "preview_steps",
                    default=20,
                    min=1,
                    max=1000,
                    advanced=True,
                    tooltip="Sampling steps of a preview; 20 shows enough.",
                ),
                io.Int.Input(
                    "shift_knots",
                    default=d.shift_knots,
                    min=0,
                    max=64,
                    advanced=True,
                    tooltip="For svd: the shift is a smooth curve over the singular values with so many knots. 16 "
                    "(default) also fits bf16 and fp8 copies of the base model; 0 gives every singular value a shift "
                    "of its own, as in the paper, which is partly lost on such copies. qr needs no curve.",
                ),
                io.Conditioning.Input(
                    "base_positive",
                    optional=True,
                    tooltip="For dco: the captions without your placeholder word ('a dog' for 'a sks dog'), one for "
                    "all or one each. Without it the base sees the same captions as the model.",
                ),
                io.Latent.Input(
                    "class_latents",
                    optional=True,
                    tooltip="Prior preservation: encoded pictures of the class, so that the word keeps its meaning.",
                ),
                io.Conditioning.Input(
                    "class_positive", optional=True, tooltip="Captions of the class pictures ('a dog')."
                ),
                io.Conditioning.Input(
                    "negative", optional=True, tooltip="Negative conditioning for previews; without it they use cfg 1."
                ),
                io.Vae.Input(
                    "vae", optional=True, tooltip="Decodes previews in full quality; without it they are rough."
                ),
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            outputs=[
                adapter_output("The trained adapter, already saved."),
                io.Model.Output(display_name="MODEL", tooltip="The base model with the adapter applied at strength 1."),
                LossMapType.Output(display_name="loss_map", tooltip="Loss per step, as the core nodes use it."),
                io.Image.Output(display_name="loss_curve", tooltip="Plain loss over steps, whichever is trained with."),
                io.String.Output(display_name="saved_name", tooltip="Name of the file in the soda folder."),
            ],
        )

    @classmethod
    def execute(cls, model, **inputs: list[Any]) -> io.NodeOutput:
        values = {name: value if name in _LIST_INPUTS else value[0] for name, value in inputs.items() if value}
        values = {name: value for name, value in values.items() if value is not None and value != [None]}
        dtype = values.pop("training_dtype")
        data = TrainingData(**{n: values.pop(n) for n in (*_LIST_INPUTS, "vae") if n in values})
        options = RunOptions(
            dtype=dtype,
            graph=graph_metadata(cls.hidden),
            show=progress_text(cls.hidden.unique_id),
            **{n: values.pop(n) for n in _OPTION_INPUTS if n in values},
        )
        result = train_in_graph(model[0], data, TrainSettings(**values), options)
        patched, _ = apply_adapter(model[0], None, result.adapter)
        rates = result.learning_rates if len(set(result.learning_rates)) > 1 else None
        curve = to_image_tensor(loss_curve(result.losses, title=result.adapter.title, learning_rates=rates))
        return io.NodeOutput(
            result.adapter,
            patched,
            {"loss": result.losses},
            curve,
            result.saved_name,
            ui=ui.PreviewImage(curve, cls=cls),
        )
