"""Test-only: an inner generation for every picture, made as ADetailer makes its own.

Switched on with ``alwayson_scripts: {"CCN probe inner": {"args": [true]}}``. The calls, their
order and the marks on the processing object are ADetailer's; what it detects is the whole picture.
"""

from __future__ import annotations

from copy import copy

import gradio as gr
from modules import processing, scripts


class InnerGeneration(scripts.Script):
    """Repaints each picture with one step of img2img that carries all scripts along."""

    def title(self):
        return "CCN probe inner"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        return [gr.Checkbox(False, visible=False, label="CCN probe inner generation")]

    def postprocess_image(self, p, pp, *args):
        if not (args and args[0] is True) or getattr(p, "_ad_inner", False):
            return
        p.scripts.postprocess(copy(p), processing.Processed(p, [], p.seed, ""))
        inner = processing.StableDiffusionProcessingImg2Img(
            init_images=[pp.image],
            denoising_strength=0.4,
            sd_model=p.sd_model,
            prompt=p.prompt,
            negative_prompt=p.negative_prompt,
            seed=p.seed,
            sampler_name=p.sampler_name,
            steps=2,
            width=p.width,
            height=p.height,
            outpath_samples=p.outpath_samples,
            outpath_grids=p.outpath_grids,
            do_not_save_samples=True,
            do_not_save_grid=True,
        )
        inner.cached_c, inner.cached_uc = [None, None], [None, None]
        inner.scripts, inner.script_args = copy(p.scripts), p.script_args
        inner._ad_inner = True
        try:
            pp.image = processing.process_images(inner).images[0]
        finally:
            inner.close()
        p.extra_generation_params["CCN probe inner"] = "done"
        again = copy(p)
        p.scripts.before_process(again)
        p.scripts.process(again)
