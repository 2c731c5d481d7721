"""The explorer on its two hosts: traits as a kernel has them, and its page in Chromium with no kernel."""

import base64
import io
import itertools
import json
import math
import pathlib
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from adatsq.explorer import BitBudgetExplorer, load_data

STORED = pathlib.Path(__file__).parents[1] / "data" / "results" / "flux-dev-mini-explorer.json"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
LAYERS = ["transformer_blocks.0.attn.to_q", "transformer_blocks.0.ff", "single_transformer_blocks.0.proj_out"]
IMAGES = "canvas[data-picture=full], canvas[data-picture=quantized], canvas[data-picture=difference]"


def picture(color):
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), color, dtype=np.uint8)).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def made_up():
    """Data as the sweep writes it: 2 weight bits x 2 tau x 2 budgets x 2 prompts, 4 steps, 3 layers."""
    rng = np.random.default_rng(0)

    def setting(w_bits, tau):
        choices = []
        for budget in (3.0, 4.0):
            bits = np.full((4, 3), 3) if budget == 3 else rng.choice([3, 4, 8], (4, 3), p=[0.6, 0.3, 0.1])
            choices.append(
                {
                    "budget": budget,
                    "average_bits": round(float(bits.mean()), 4),
                    "flop_weighted_bits": 3.2,
                    "error": round(float(rng.uniform(0.1, 1)), 3),
                    "bits": ["".join(map(str, row)) for row in bits],
                    "psnr": rng.uniform(20, 40, 2).round(2).tolist(),
                    "images": [picture(rng.integers(0, 200, 3)) for _ in range(2)],
                }
            )
        points = [[c["average_bits"], c["error"]] for c in choices]
        return {
            "w_bits": w_bits,
            "tau": tau,
            "paths": points,
            "front": sorted(points),
            "uniform": [[3.0, 1.1], [4.0, 0.5]],
            "choices": choices,
        }

    return {
        "format_version": 1,
        "name": "made-up",
        "model": "none",
        "timesteps": [1.0, 0.7, 0.4, 0.1],
        "layers": LAYERS,
        "fisher": rng.uniform(1, 9, (4, 3)).round(2).tolist(),
        "prompts": [
            {"text": text, "seed": 0, "image": picture([200, 200, 200])}
            for text in ("a star</script><b>", "a ring")
        ],
        "w_bits": [4, 3],
        "taus": [0.25, None],
        "effective_timesteps": [1.5, 4.0],
        "budgets": [3.0, 4.0],
        "settings": [setting(*s) for s in itertools.product((4, 3), (0.25, None))],
    }


def state_in(page):
    return json.loads(re.search(r'<script type="application/json"[^>]*>(.*?)</script>', page, re.S).group(1))


# With a kernel


def test_it_is_a_widget_and_a_page():
    data = made_up()
    bundle, _ = BitBudgetExplorer(data, budget=1)._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    state = state_in(bundle["text/html"])
    assert state["data"] == data and state["budget"] == 1 and not state["can_run"]
    assert set(re.findall(r"https?://[\w./]+", bundle["text/html"])) == {"http://www.w3.org/2000/svg"}


def test_choice_follows_the_positions():
    explorer = BitBudgetExplorer(made_up())
    assert explorer.get_state()["live"] is None  # a new one shows what is stored
    for w_bits, tau, budget in itertools.product(range(2), repeat=3):
        explorer.set_trait("w_bits", w_bits)
        explorer.set_trait("tau", tau)
        explorer.set_trait("budget", budget)
        assert explorer.choice is explorer.data["settings"][2 * w_bits + tau]["choices"][budget]


def test_a_live_point_is_asked_for_and_failures_are_told():
    asked, point = [], made_up()

    def live(*question):
        asked.append(question)
        if question[-1] == "fail":
            raise ValueError("budget 3.0 is below the cheapest candidates")
        return point

    explorer = BitBudgetExplorer(made_up(), live, w_bits=1, tau=1, budget=1)
    explorer.request = {"number": 1, "text": "two hearts"}
    assert asked == [(3, math.inf, 4.0, "two hearts")]
    assert explorer.live == point and explorer.status == "done"
    explorer.request = {"number": 2, "text": "fail"}
    assert explorer.status == "ValueError: budget 3.0 is below the cheapest candidates"
    assert explorer.can_run and not BitBudgetExplorer(made_up()).can_run


def test_bad_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no explorer data .*nothing.json: write it with python -m"):
        load_data(tmp_path / "nothing.json")
    for text, message in (
        ("{", "is damaged"),
        ('{"format_version": 2}', "version 2"),
        ("[]", "version None"),
    ):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_data(tmp_path / "bad.json")


@pytest.mark.skipif(not STORED.exists(), reason="no stored sweep")
def test_the_stored_sweep_is_whole():
    data = load_data(STORED)
    assert STORED.stat().st_size < 1.5e6
    assert len(data["settings"]) == len(data["w_bits"]) * len(data["taus"])
    for setting in data["settings"]:
        assert [c["budget"] for c in setting["choices"]] == data["budgets"]
        assert all(c["average_bits"] <= c["budget"] + 1e-4 for c in setting["choices"])
        errors = [c["error"] for c in setting["choices"]]
        assert errors == sorted(
            errors, reverse=True
        )  # more bits never do worse: the cheaper path stays allowed


# Without one


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no Chromium on PATH")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-quic"]
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser, tmp_path):
    """The explorer of made-up data, opened; it must not complain nor ask the network."""
    file, complaints = tmp_path / "page.html", []
    file.write_text(f"<!doctype html><meta charset=utf-8>{BitBudgetExplorer(made_up()).to_html()}")
    page = browser.new_page()
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda r: complaints.append(r.url) if r.url.startswith("http") else None)
    page.goto(file.as_uri())
    page.locator("[name=budget]").wait_for()
    yield page
    page.close()
    assert not complaints


def value(page, name):
    return page.locator(f"[data-value={name}]").inner_text()


def test_the_page_shows_what_the_data_holds(page):
    data = made_up()
    for w_bits, tau, budget, prompt in itertools.product(range(2), repeat=4):
        page.locator("[name=w_bits]").select_option(str(w_bits))
        page.locator("[name=prompt]").select_option(str(prompt))
        page.locator("[name=tau]").press("End" if tau else "Home")
        page.locator("[name=budget]").press("End" if budget else "Home")
        choice = data["settings"][2 * w_bits + tau]["choices"][budget]
        assert float(value(page, "average")) == pytest.approx(choice["average_bits"], abs=1e-3)
        assert float(value(page, "error")) == pytest.approx(choice["error"], rel=5e-3)
        assert float(value(page, "psnr").split()[0]) == pytest.approx(choice["psnr"][prompt], abs=0.051)
        # the picture on the canvas, and its brightened difference, pixel by pixel
        wanted = np.array(Image.open(io.BytesIO(base64.b64decode(choice["images"][prompt]))))[0, 0]
        read = """name => [...document.querySelector(`[data-picture=${name}]`)
            .getContext("2d").getImageData(0, 0, 1, 1).data].slice(0, 3)"""
        page.wait_for_function(
            f"wanted => String(({read})('quantized')) == wanted", arg=",".join(map(str, wanted))
        )
        difference = np.minimum(255, 4 * np.abs(200 - wanted.astype(int)))
        assert page.evaluate(read, "difference") == difference.tolist()


def test_the_heat_map_is_read_by_keyboard_and_pointer(page):
    data = made_up()
    page.locator("[name=budget]").press("End")
    heat_map, readout = (
        page.locator("[data-figure=policy] svg"),
        page.locator("[data-figure=policy] .readout"),
    )
    bits = data["settings"][0]["choices"][1]["bits"]

    def expect(t, l, name):
        rank = 1 + sum(v > data["fisher"][t][l] for v in data["fisher"][t])
        said = readout.inner_text()
        assert said.startswith(f"step {t + 1} of 4, {name}: {bits[t][l]} bits.")
        assert said.endswith(f"rank {rank} of 3 at this step.")
        assert float(re.search(r"score (\S+),", said).group(1)) == pytest.approx(
            data["fisher"][t][l], rel=0.1
        )

    expect(0, 0, "double 0 attn.to_q")
    for key in ("ArrowRight", "ArrowDown", "ArrowLeft", "ArrowRight", "ArrowDown", "ArrowDown"):
        heat_map.press(key)
    expect(1, 2, "single 0 proj_out")  # the edge holds
    box = heat_map.bounding_box()
    heat_map.hover(position={"x": box["width"] * 600 / 630, "y": box["height"] * 27 / 69})
    expect(3, 1, "double 0 ff")


def test_every_control_has_a_name_and_the_frontier_its_points(page):
    for name in ("budget", "tau", "w_bits", "prompt"):
        assert page.locator(f"label:has([name={name}]) > span").inner_text()
    assert page.locator("[name=tau]").get_attribute("aria-valuetext") == "0.25"
    assert page.locator(IMAGES).count() == 3
    assert page.locator("form.live").is_hidden()  # nothing here to run it
    first = page.locator("[data-figure=front] svg").inner_html()
    page.locator("[name=budget]").press("End")
    assert page.locator("[data-figure=front] svg").inner_html() != first
