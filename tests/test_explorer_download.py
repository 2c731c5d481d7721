"""From a model to its sweep, its page, a painted cell, the downloaded file, and back to the model."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from adatsq import Policy, apply, load_pipeline, quantize, sampling
from adatsq.evaluate import generate
from adatsq.explorer import BitBudgetExplorer, choices_of
from adatsq.sweep import sweep
from adatsq.world import load_prompts

PROMPTS = Path(__file__).parents[1] / "data" / "prompts" / "evaluation.json"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH")
def test_a_painted_policy_is_downloaded_and_applied(tiny_folder, tmp_path):
    from playwright.sync_api import sync_playwright

    kinds = {"methods": ("ladder",), "beams": (1,), "steps": 2, "progress": False}
    prompts = load_prompts(PROMPTS)[:1]
    data = sweep(str(tiny_folder), prompts, ["a ring"], (4,), (1.0,), (3.0,), **kinds)
    (tmp_path / "page.html").write_text(BitBudgetExplorer(data).to_html())
    with sync_playwright() as playwright:
        options = {"executable_path": CHROMIUM, "args": ["--no-sandbox", "--disable-gpu"]}
        browser = playwright.chromium.launch(**options)
        page = browser.new_page()
        page.goto((tmp_path / "page.html").as_uri())
        page.locator("[data-reach]").select_option("layer")
        page.locator("[data-figure=policy] svg").press("8")
        with page.expect_download() as waiting:
            page.locator("[data-do=download]").click()
        waiting.value.save_as(tmp_path / "policy.json")
        browser.close()

    policy = Policy.load(tmp_path / "policy.json")
    bits = np.array(
        [[int(digit) for digit in row] for row in choices_of(data, data["settings"][0])[0]["bits"]]
    )
    bits[:, 0] = 8
    assert (policy.bits == bits).all()
    pipe = quantize(load_pipeline(str(tiny_folder), torch_dtype=torch.float32), w_bits=4, solver="rtn")
    seen = []
    first = pipe.transformer.get_submodule(policy.layers[0].name)
    first.register_forward_pre_hook(lambda module, args: seen.append(module.a_bits))
    apply(pipe, policy)
    generate(pipe, ["a star"], [0], progress=False, **{**sampling(pipe), "num_inference_steps": 2})
    assert seen == [8, 8]
