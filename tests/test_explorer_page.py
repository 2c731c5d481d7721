"""The explorer's page as a reader has it: Chromium, no kernel, no network; every control moved."""

import base64
import hashlib
import importlib
import io
import itertools
import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from chromium import PATH as CHROMIUM
from explorer_controls import move_everything
from explorer_data import made_up
from PIL import Image

from adatsq import Policy
from adatsq.explorer import BitBudgetExplorer, choices_of, load_data, predictions

ROOT = Path(__file__).parents[1]
MODELS = [made_up(), made_up("another", 1, errors=False, frames=3)]
for model in MODELS:  # too few prompts for a score
    model["weights"][1]["policies"][0]["score"] = None
HEAT_MAP, FRONT = "[data-figure=policy] svg", "[data-figure=front] svg"
PIXEL = """name => [...document.querySelector(`[data-picture=${name}]`)
    .getContext("2d").getImageData(0, 0, 1, 1).data].slice(0, 3).join()"""


@pytest.fixture(scope="module")
def browser():
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
def opened(browser, tmp_path):
    """opened(**context) -> the page of made-up data; it must not complain nor ask the network. after: what is
    done to it when it is written. allowed: what it may complain of. models: other data."""
    complaints, contexts = [], []
    head = '<!doctype html><meta charset=utf-8><meta name=viewport content="width=device-width">'
    head += "<style>:root { color-scheme: light dark }</style>"

    def one(path="page.html", after=lambda: None, allowed=None, models=MODELS, **context):
        file = tmp_path / path
        file.write_text(head + BitBudgetExplorer(models).to_html())
        after()

        def note(text):
            if not (allowed and allowed in text):
                complaints.append(text)

        contexts.append(browser.new_context(**context))
        page = contexts[-1].new_page()
        page.on("console", lambda said: note(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda r: complaints.append(r.url) if r.url.startswith("http") else None)
        page.goto(file.as_uri())
        page.locator("[name=budget]").wait_for()
        return page

    yield one
    for context in contexts:
        context.close()
    assert not complaints


@pytest.fixture
def page(opened):
    return opened()


def value(page, name):
    return page.locator(f"[data-value={name}]").inner_text()


def shown(page):
    """The setting that the controls stand for."""
    text = {
        key: page.locator(f"[name={key}] option:checked").inner_text() for key in ("method", "tau", "beam")
    }
    (setting,) = (
        s
        for s in MODELS[int(page.locator("[name=model]").input_value())]["settings"]
        if (s["method"] == "uniform") == (text["method"] == "fixed bits")
        and s["w_bits"] == int(page.locator("[name=w_bits] option:checked").inner_text().split()[0])
        and s["tau"] == (None if "∞" in text["tau"] else float(text["tau"]))
        and s["beam"] == (None if text["beam"] == "no beam" else int(text["beam"]))
    )
    return setting


def expect(page, prompt, budget):
    """Numbers and pixels are those of the data."""
    model, setting = MODELS[int(page.locator("[name=model]").input_value())], shown(page)
    choice = choices_of(model, setting)[budget]
    assert float(value(page, "average")) == pytest.approx(choice["average_bits"], abs=1e-3)
    assert float(value(page, "weighted")) == pytest.approx(choice["flop_weighted_bits"], abs=1e-3)
    assert float(value(page, "error")) == pytest.approx(choice["error"], rel=5e-3)
    assert float(value(page, "psnr").split()[0]) == pytest.approx(choice["psnr"][prompt], abs=0.051)
    bits = setting["w_bits"]
    assert value(page, "memory") == f"{bits}.00 MB (16 bit: {bits * 16 / (bits + 0.5):.1f} MB)"
    told = "0.900 [0.875, 0.925], full precision 0.950 [0.900, 1.000], 12 prompts"
    assert value(page, "score") == (told if choice["score"] else "not scored")
    wanted, full = (
        np.array(Image.open(io.BytesIO(base64.b64decode(image))))[0, 0].astype(int)
        for image in (choice["images"][prompt], model["prompts"][prompt]["image"])
    )
    page.wait_for_function(f"wanted => ({PIXEL})('quantized') == wanted", arg=",".join(map(str, wanted)))
    difference = np.minimum(255, 4 * np.abs(full - wanted))
    assert page.evaluate(PIXEL, "difference") == ",".join(map(str, difference))


def test_every_control_moves_what_is_shown(page):
    for model, method, w_bits in itertools.product(range(2), repeat=3):
        for name, i in {"model": model, "method": method, "w_bits": w_bits}.items():
            page.locator(f"[name={name}]").select_option(index=i)
        for tau, beam in itertools.product(range(2), range(2 - method)):
            page.locator("[name=tau]").select_option(index=tau)
            if method == 0:
                page.locator("[name=beam]").select_option(index=beam)
            page.locator("[name=prompt]").select_option(index=tau)
            page.locator("[name=budget]").press("End" if beam else "Home")
            expect(page, tau, len(shown(page)["choices"]) - 1 if beam else 0)
    assert page.locator("[name=beam]").is_disabled()  # fixed bits have none


def test_another_model_is_shown_at_the_like_setting(page):
    for name, i in (("w_bits", 1), ("tau", 1), ("beam", 1)):
        page.locator(f"[name={name}]").select_option(index=i)
    page.locator("[name=budget]").press("End")
    before = {key: shown(page)[key] for key in ("method", "w_bits", "tau", "beam")}
    page.locator("[name=model]").select_option("1")
    expect(page, 0, 2)
    assert (
        {key: shown(page)[key] for key in before}
        == before
        == {
            "method": "ladder",
            "w_bits": 3,
            "tau": None,
            "beam": 4,
        }
    )


def test_a_method_without_beams_does_not_forget_the_beam(page):
    page.locator("[name=beam]").select_option(index=1)
    page.locator("[name=budget]").press("ArrowRight")
    before = shown(page), value(page, "average"), value(page, "error")
    for i in (1, 0):
        page.locator("[name=method]").select_option(index=i)
    assert (shown(page), value(page, "average"), value(page, "error")) == before
    assert before[0]["beam"] == 4


def test_as_a_reader_moves_everything(page, tmp_path):
    """What is asked of the pages of the book, asked of made-up data."""
    page.locator("[name=budget]").press("ArrowRight")  # where beams differ
    move_everything(page.locator(".adatsq-explorer"), tmp_path)
    assert len(list(tmp_path.glob("*/policy.json"))) == 2


def test_the_site_loads_a_model_when_it_is_chosen(opened, tmp_path, monkeypatch):
    """The extension of the book moves the data of all models but the first into files."""
    monkeypatch.syspath_prepend(ROOT / "book" / "ext")
    module = importlib.import_module("light_explorer")
    (tmp_path / "deep").mkdir()
    app = SimpleNamespace(builder=SimpleNamespace(format="html"), outdir=tmp_path)
    page = opened("deep/page.html", lambda: module.move_out(app, None), "ERR_FILE_NOT_FOUND")
    (moved,) = (tmp_path / "_static" / "explorer").iterdir()
    text = (tmp_path / "deep" / "page.html").read_text()
    assert moved.stem in text and moved.stat().st_size > 1000 and moved.read_text()[-500:-10] not in text
    expect(page, 0, 0)
    page.locator("[name=model]").select_option("1")
    page.wait_for_function("document.querySelector('[name=beam]').value !== ''")
    expect(page, 0, 0)

    moved.rename(moved.with_suffix(".away"))
    page.reload()
    page.locator("[name=budget]").wait_for()
    page.locator("[name=model]").select_option("1")
    page.get_by_text("another cannot be shown: ").wait_for()
    expect(page, 0, 0)


def test_what_is_not_stored_is_not_offered(page):
    assert page.locator("[name=beam] option").all_inner_texts() == ["1", "4"]
    page.locator("[name=method]").select_option("1")
    assert page.locator("[name=beam] option").all_inner_texts() == ["no beam"]
    assert page.locator("[name=budget]").get_attribute("max") == "1"
    assert page.locator("form.live").is_hidden() and page.locator("[data-clip]").is_hidden()


def test_the_frontier_is_dragged_and_moved_by_keys(page):
    front, choices = page.locator(FRONT), MODELS[0]["settings"][0]["choices"]
    front.scroll_into_view_if_needed()
    rings = page.locator(f"{FRONT} circle[r='7']")
    places = [rings.nth(i).bounding_box() for i in range(len(choices))]
    middle = [(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2) for box in places]
    page.mouse.move(*middle[0])
    page.mouse.down()
    for i in (1, 2, 1):
        page.mouse.move(*middle[i], steps=3)
        expect(page, 0, i)
        assert page.locator("[name=budget]").input_value() == str(i)
    page.mouse.up()
    page.mouse.move(*middle[0])
    expect(page, 0, 1)  # let go
    for key, i in (("ArrowRight", 2), ("ArrowRight", 2), ("ArrowLeft", 1), ("Home", 0), ("End", 2)):
        front.press(key)
        expect(page, 0, i)
        assert front.get_attribute("aria-valuenow") == str(i)
    assert "budget 5 bits" in front.get_attribute("aria-valuetext")


def cell(page, t, l):
    """Centre of a cell of the heat map, in CSS pixels of the page."""
    page.locator(HEAT_MAP).scroll_into_view_if_needed()
    boxes = [path.bounding_box() for path in page.locator(f"{HEAT_MAP} path[data-bits]").all()]
    x0, y0 = min(b["x"] for b in boxes), min(b["y"] for b in boxes)
    x1, y1 = max(b["x"] + b["width"] for b in boxes), max(b["y"] + b["height"] for b in boxes)
    return x0 + (t + 0.5) * (x1 - x0) / 4, y0 + (l + 0.5) * (y1 - y0) / 3


def test_the_heat_map_is_read_by_keyboard_and_pointer(page):
    page.locator("[name=budget]").press("End")
    readout, fisher = page.locator("[data-figure=policy] .readout"), MODELS[0]["fisher"]
    bits = choices_of(MODELS[0], MODELS[0]["settings"][0])[2]["bits"]

    def says(t, l, name):
        rank = 1 + sum(v > fisher[t][l] for v in fisher[t])
        said = readout.inner_text()
        assert said.startswith(f"step {t + 1} of 4, {name}: {bits[t][l]} bits.")
        assert float(re.search(r"score (\S+),", said)[1]) == pytest.approx(fisher[t][l], rel=0.02)
        assert said.endswith(f"rank {rank} of 3 at this step.")

    says(0, 0, "double 0 attn.to_q")
    assert page.locator(f"{HEAT_MAP} text").all_text_contents()[:2] == ["double 0", "context 0"]
    for key in ("ArrowRight", "ArrowDown", "ArrowLeft", "ArrowRight", "ArrowDown", "ArrowDown"):
        page.locator(HEAT_MAP).press(key)
    says(1, 2, "context 0 attention.to_q")  # the edge holds
    page.mouse.move(*cell(page, 3, 1))
    says(3, 1, "double 0 ff")


def download(page, tmp_path):
    with page.expect_download() as waiting:
        page.locator("[data-do=download]").click()
    waiting.value.save_as(tmp_path / "policy.json")
    assert waiting.value.suggested_filename.endswith(".json")
    return Policy.load(tmp_path / "policy.json")


def test_painting_and_the_downloaded_policy(page, tmp_path):
    """By pointer and by keyboard; averages and prediction follow; adatsq loads the file."""
    data = MODELS[0]
    stored = choices_of(data, data["settings"][0])[1]
    page.locator("[name=budget]").press("ArrowRight")
    bits = np.array([[int(b) for b in row] for row in stored["bits"]])
    policy = download(page, tmp_path)
    assert (policy.bits == bits).all()
    assert (policy.model, policy.timesteps) == (data["model"], tuple(data["timesteps"]))
    assert [list(layer) for layer in policy.layers] == data["layers"] and policy.branches == 1

    page.mouse.move(*cell(page, 0, 0))
    page.mouse.down()
    page.mouse.up()
    assert float(value(page, "average")) == pytest.approx(bits.mean(), abs=1e-3)  # no brush yet
    page.locator('[data-brush="8"]').check()
    page.mouse.move(*cell(page, 0, 0))
    page.mouse.down()
    page.mouse.move(*cell(page, 3, 0))  # in one jump: the cells between are painted too
    bits[:, 0] = 8
    assert float(value(page, "average")) == pytest.approx(bits.mean(), abs=1e-3)  # before the button is up
    page.mouse.up()
    for key in ("3", "ArrowDown", "4", "ArrowLeft", "Space", "Shift+ArrowLeft"):
        page.locator(HEAT_MAP).press(key)
    bits[3, 0], bits[3, 1], bits[2, 1], bits[1, 1] = 3, 4, 8, 8
    assert page.evaluate("document.activeElement.tagName") == "svg"  # the focus stays through drawing
    page.locator("[data-reach]").select_option("step")
    page.locator(HEAT_MAP).press("3")
    bits[1] = 3
    policy = download(page, tmp_path)
    assert (policy.bits == bits).all()
    assert float(value(page, "average")) == pytest.approx(policy.average, abs=6e-4)
    assert float(value(page, "weighted")) == pytest.approx(policy.flop_weighted, abs=6e-4)
    assert value(page, "error") == value(page, "psnr") == "not run" and value(page, "score") == "not scored"
    predict = predictions(data, data["weights"][0])
    ratio = predict(["".join(map(str, row)) for row in bits]) / predict(stored["bits"])
    note = value(page, "note")
    assert f"{ratio:.3f} × the stored" in note and "0.75 over the 5 policies" in note
    assert page.locator(f"{FRONT} [data-painted]").count() == 1
    page.locator("[data-do=reset]").click()
    expect(page, 0, 1)
    assert value(page, "note") == "" and page.locator("[data-do=reset]").is_hidden()


def test_without_stored_errors_nothing_is_predicted(page):
    page.locator("[name=model]").select_option("1")
    page.locator(HEAT_MAP).press("8")
    assert "nothing is predicted" in value(page, "note") and "×" not in value(page, "note")


def test_the_file_and_its_checksum_are_pythons(page):
    """Numbers that the two languages write differently."""
    module = json.dumps(page.locator("script[id$=-module]").first.text_content())
    numbers = [
        1.0,
        0.5,
        999.0,
        1e-4,
        9.9e-5,
        1e-5,
        2.5e-7,
        1.25e-10,
        123456.789,
        0.1 + 0.2,
        0.30000001192092896,
    ]
    found = page.evaluate(
        f"""async numbers => {{
            const text = {module} + "\\nexport {{ pythonFloat, sha256 }};";
            const m = await import(URL.createObjectURL(new Blob([text], {{ type: "text/javascript" }})));
            return [numbers.map(m.pythonFloat), ["", "abc", "é".repeat(200)].map(m.sha256)];
        }}""",
        numbers,
    )
    assert found[0] == [repr(number) for number in numbers]
    assert found[1] == [hashlib.sha256(text.encode()).hexdigest() for text in ("", "abc", "é" * 200)]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it(opened, scheme):
    page = opened(viewport={"width": 360, "height": 740}, has_touch=True, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    sizes = page.evaluate(
        "[...document.querySelectorAll('svg text')].map(e => e.getBoundingClientRect().height)"
    )
    assert min(sizes) >= 10  # readable: drawn at the width of the phone, not scaled down to it
    first = value(page, "average")
    page.locator("[data-brush='8']").check()
    page.touchscreen.tap(*cell(page, 1, 1))
    assert value(page, "average") != first
    color = "getComputedStyle(document.querySelector(s)).color"
    colors = page.evaluate(f"() => ['svg text', 'select', 'button'].map(s => {color})")
    bright = [sum(map(int, color[4:-1].split(", "))) for color in colors]
    assert all(b > 500 for b in bright) if scheme == "dark" else all(b < 200 for b in bright)


FRAME = "() => document.querySelector('[data-value=frame]').textContent"
DOTS = """() => ["full", "quantized", "difference"].map(name => { // where each canvas is white
    const canvas = document.querySelector(`[data-picture=${name}]`), context = canvas.getContext("2d");
    const red = x => context.getImageData(x, 4, 1, 1).data[0];
    const white = [...Array(canvas.width).keys()].filter(x => red(x) === 255);
    return `${canvas.width}: ${white}`; })"""


def test_a_clip_moves_until_it_is_paused(page):
    """All frames that are stored, one at a time; a model of pictures has no such button."""
    assert page.locator("[data-clip]").is_hidden()
    page.locator("[name=model]").select_option("1")
    for i in (1, 2, 3, 1):
        page.wait_for_function(f"({FRAME})().startsWith('frame {i} of the 3 ')")
        full, quantized, difference = page.evaluate(DOTS)
        assert full == quantized == f"8: {i + 1}" and difference == "8: "  # the dot of this frame
    button = page.locator("[data-do=play]")
    button.click()
    held = page.evaluate(FRAME)
    page.wait_for_timeout(1300)
    assert page.evaluate(FRAME) == held and button.inner_text() == "play"
    page.locator("[name=prompt]").select_option("1")  # still of the same frame
    page.locator("[name=model]").select_option("0")
    page.locator("[name=model]").select_option("1")
    page.wait_for_timeout(700)
    assert button.inner_text() == "play" and page.evaluate(FRAME).startswith("frame 1 ")
    button.press("Enter")
    page.wait_for_function(f"({FRAME})().startsWith('frame 2 of ')")


def test_less_motion_leaves_a_clip_still_until_it_is_played(opened):
    page = opened(reduced_motion="reduce")
    page.locator("[name=model]").select_option("1")
    page.wait_for_timeout(1300)
    assert page.evaluate(FRAME).startswith("frame 1 ")
    page.locator("[data-do=play]").click()
    page.wait_for_function(f"({FRAME})().startsWith('frame 2 of ')")


@pytest.mark.parametrize("width, height", [(1280, 500), (360, 700)])
def test_frontier_and_pictures_are_in_sight_together(opened, width, height):
    page = opened(viewport={"width": width, "height": height})
    places = [page.locator(s).bounding_box() for s in (FRONT, "[data-picture=full]", "[data-value=psnr]")]
    top, bottom = min(p["y"] for p in places), max(p["y"] + p["height"] for p in places)
    assert bottom - top < height
    assert (places[0]["x"] + places[0]["width"] < places[1]["x"]) == (width > 640)  # beside, or above


def test_a_finger_paints_blocks_and_scrolls(opened):
    page = opened(viewport={"width": 360, "height": 740}, has_touch=True)
    bits = np.array([list(row) for row in choices_of(MODELS[0], MODELS[0]["settings"][0])[0]["bits"]], int)
    page.locator("[data-brush='8']").check()
    x, y = cell(page, 1, 1)
    cdp = page.context.new_cdp_session(page)
    before = page.evaluate("scrollY")
    for i in range(13):
        kind = "touchMove" if i else "touchStart"
        cdp.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [{"x": x, "y": y + 10 * i}]})
    cdp.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    page.wait_for_function("before => scrollY < before", arg=before)
    assert float(value(page, "average")) == pytest.approx(bits.mean(), abs=1e-3)  # a scroll paints nothing
    place = cell(page, 1, 1)
    page.touchscreen.tap(*place)
    assert cell(page, 1, 1) == pytest.approx(place, abs=2), "the map moves away from the finger"
    bits[1, :2] = 8  # the two layers of the first block
    assert float(value(page, "average")) == pytest.approx(bits.mean(), abs=1e-3)


@pytest.mark.parametrize("width, height", [(390, 844), (1280, 900)])
def test_the_readout_is_in_sight_of_the_cell_it_reads(opened, width, height):
    page = opened(viewport={"width": width, "height": height})
    x, y = cell(page, 2, 0)
    page.mouse.move(x, y)
    place = page.locator("[data-figure=policy] .readout").bounding_box()
    assert 0 <= place["y"] and place["y"] + place["height"] <= y <= height, "above the map, in sight"
    assert y - place["y"] < 150, "near the pointer"
    page.mouse.move(*cell(page, 2, 1))  # other words: the map stays where it is
    assert cell(page, 2, 0) == pytest.approx((x, y))


CHOOSE = """(control, value) => {
    control.value = value;
    control.dispatchEvent(new Event(control.type === "range" ? "input" : "change"));
}"""
SHARES = """() => [document.querySelector("[data-shares]").textContent,
    document.querySelector("[data-figure=policy] svg").getAttribute("aria-label")]
    .map(text => [...text.matchAll(/(\\d+) %/g)].reduce((sum, [, share]) => sum + Number(share), 0))"""
COVERED = """() => { // labels of fixed bits that a ring or the edge cuts
    const svg = document.querySelector("[data-figure=front] svg"), edge = svg.getBoundingClientRect();
    const rings = [...svg.querySelectorAll("circle[r='7']")].map(e => e.getBoundingClientRect());
    const labels = [...svg.querySelectorAll("text")].filter(e => /^all \\d/.test(e.textContent));
    return labels.filter(e => { const a = e.getBoundingClientRect();
        return a.right > edge.right || rings.some(b =>
            a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom); })
        .map(e => e.textContent); }"""


@pytest.mark.parametrize(
    "file", sorted((ROOT / "data" / "results").glob("*-explorer.json")), ids=lambda f: f.stem
)
@pytest.mark.parametrize("width", [390, 1280])
def test_shares_add_up_and_no_ring_is_on_a_label(opened, file, width):
    """For every setting of the stored data, and its budgets."""
    page = opened(models=[load_data(file)], viewport={"width": width, "height": 900})

    def every(*names):
        if not names:
            yield
            return
        for i in range(page.locator(f"[name={names[0]}] option").count()):
            page.locator(f"[name={names[0]}]").evaluate(CHOOSE, i)
            yield from every(*names[1:])

    for _ in every("method", "w_bits", "tau", "beam"):
        assert page.evaluate(COVERED) == []
        budgets = int(page.locator("[name=budget]").get_attribute("max")) + 1
        for budget in range(budgets if width == 390 else 1):  # the same at any width
            page.locator("[name=budget]").evaluate(CHOOSE, budget)
            assert page.evaluate(SHARES) == [100, 100]


def test_nothing_moves_by_itself(page):
    """No animation or transition, whatever the reader's setting for motion."""
    still = "s.animationName === 'none' && s.transitionDuration === '0s'"
    every = "[...document.querySelectorAll('.adatsq-explorer *')].map(e => getComputedStyle(e))"
    assert page.evaluate(f"() => {every}.every(s => {still})")


def test_every_control_has_a_name(page):
    for name in ("budget", "model", "method", "w_bits", "tau", "beam", "prompt"):
        assert page.locator(f"label:has([name={name}]) > span").inner_text()
    assert page.locator("[name=budget]").get_attribute("aria-valuetext") == "3.00 bits"
    for selector in (HEAT_MAP, FRONT, *(f"[data-picture={p}]" for p in ("full", "quantized", "difference"))):
        assert page.locator(selector).get_attribute("aria-label")
