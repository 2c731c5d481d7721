"""Every control of a bit-budget explorer moved as a reader moves it, and what must change when it is.

`explorer`: playwright's locator of one, on a page or in JupyterLab.
"""

import time

from adatsq import Policy

NUMBERS = ("average", "weighted", "error", "psnr", "memory", "score", "name", "note")
SEEN = """(explorer, numbers) => ({
    numbers: Object.fromEntries(numbers.map(
        n => [n, explorer.querySelector(`[data-value=${n}]`).textContent])),
    pictures: Object.fromEntries([...explorer.querySelectorAll("[data-picture]")].map(
        c => [c.dataset.picture, c.toDataURL()])),
    policy: explorer.querySelector("[data-figure=policy] svg").outerHTML,
    front: explorer.querySelector("[data-figure=front] svg").outerHTML})"""
LEFT_TO_THE_PAGE = """(element, key) =>
    element.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }))"""
HEAT_MAP, FRONT = "[data-figure=policy] svg", "[data-figure=front] svg"
# Control: a number that must change with it (one of these), and the pictures that must (all of these).
MOVED = {
    "model": ({"average", "error", "memory"}, {"full", "quantized", "difference"}),
    "method": ({"average", "error"}, {"quantized", "difference"}),
    "w_bits": ({"memory"}, {"quantized", "difference"}),
    "tau": ({"error"}, {"quantized", "difference"}),
    "beam": ({"average", "error"}, {"quantized", "difference"}),
    "prompt": ({"psnr"}, {"full", "quantized", "difference"}),
    "budget": ({"average"}, {"quantized", "difference"}),
}


def seen(explorer) -> dict:
    return explorer.evaluate(SEEN, list(NUMBERS))


def wait_until_moved(explorer, before: dict, numbers: set, pictures: set, what: str, seconds=10.0) -> dict:
    """What is seen once the pictures and one of the numbers differ; they are drawn when they are decoded."""
    end = time.monotonic() + seconds
    while True:
        now = seen(explorer)
        same = {p for p in pictures if now["pictures"][p] == before["pictures"][p]}
        still = not any(now["numbers"][n] != before["numbers"][n] for n in numbers)
        if not same and not still:
            return now
        assert time.monotonic() < end, f"{what}: pictures {same or 'moved'}, numbers {before['numbers']} stay"
        time.sleep(0.05)


def move_selects(explorer) -> set[str]:
    """Choose every option of every list of the model shown; the names of the lists that moved something."""
    lists = ("beam", "method", "tau", "prompt", "w_bits")  # other weights may not have the budget
    return set().union(*(move_select(explorer, name) for name in lists))


def move_select(explorer, name: str) -> set[str]:
    """Every option of one list, and back; of each method, its beams too, which others may not have."""
    select, moved = explorer.locator(f"[name={name}]"), set()
    options = select.locator("option").count()
    assert select.is_disabled() == (options == 1), f"{name}: {options} options"
    first = int(select.input_value())
    for i in range(1, options):
        if choose(explorer, name, (first + i) % options):
            moved.add(name)
        if name == "method":
            moved |= move_select(explorer, "beam")
    if options > 1:
        choose(explorer, name, first)
    return moved


def choose(explorer, name: str, i: int) -> bool:
    """Whether what is shown moved. Two methods or beams may find the same policy: then all must stay."""
    before = seen(explorer)
    explorer.locator(f"[name={name}]").select_option(index=i)
    if name in ("method", "beam"):
        now = seen(explorer)
        if now["policy"] == before["policy"]:
            assert now["numbers"] == before["numbers"], f"{name}, option {i}: other numbers of one policy"
            return False
    wait_until_moved(explorer, before, *MOVED[name], f"{name}, option {i}")
    return True


def move_budget(explorer) -> None:
    """By the slider's keys, by the frontier's, and by dragging along the frontier.

    A larger budget may have no better policy than a smaller one: then the picture has to stay as it is.
    """
    slider, front = explorer.locator("[name=budget]"), explorer.locator(FRONT)
    last = int(slider.get_attribute("max"))
    slider.press("Home")
    averages = [seen(explorer)["numbers"]["average"]]
    for control, key in [(slider, "ArrowRight")] * last + [(front, "ArrowLeft")] * last:
        before, budget = seen(explorer), slider.get_attribute("aria-valuetext")
        control.press(key)
        assert slider.get_attribute("aria-valuetext") != budget, f"{key} does not move the budget"
        averages.append(seen(explorer)["numbers"]["average"])
        if averages[-1] != averages[-2]:
            now = wait_until_moved(explorer, before, *MOVED["budget"], f"budget, {key}")
            assert now["policy"] != before["policy"] and now["front"] != before["front"]
    assert averages == averages[::-1] and averages[last] != averages[0], averages
    front.scroll_into_view_if_needed()
    rings = [ring.bounding_box() for ring in explorer.locator(f"{FRONT} circle[r='7']").all()]
    places = [(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2) for box in rings]
    mouse, before = explorer.page.mouse, seen(explorer)
    mouse.move(*places[0])
    mouse.down()
    mouse.move(*places[last], steps=4)
    mouse.up()
    now = wait_until_moved(explorer, before, *MOVED["budget"], "budget, dragged")
    assert now["numbers"]["average"] == averages[last] and slider.input_value() != "0"


def paint(explorer) -> None:
    """Every brush on a cell, a step and a layer by keys, one over the map by pointer, and the way back."""
    reach, heat_map, stored = explorer.locator("[data-reach]"), explorer.locator(HEAT_MAP), seen(explorer)
    brushes = sorted(int(b.get_attribute("value") or 0) for b in explorer.locator("[data-brush]").all())
    heat_map.scroll_into_view_if_needed()

    def stroke(brush: int) -> dict:
        explorer.locator(f"[data-brush='{brush or ''}']").check()
        heat_map.press("Space")
        return seen(explorer)

    for option in range(reach.locator("option").count()):
        reach.select_option(index=option)
        found = [stroke(brush) for brush in brushes[1:]]
        assert len({now["policy"] for now in found}) == len(found), "two brushes, one policy"
        assert found[0]["numbers"]["average"] < found[-1]["numbers"]["average"]
        assert stroke(0)["numbers"] == found[-1]["numbers"], "the brush for nothing painted"
        assert heat_map.evaluate(LEFT_TO_THE_PAGE, " ") is False, "a space scrolls the page"
        heat_map.press("ArrowRight")
    assert found[-1]["numbers"]["error"] == found[-1]["numbers"]["psnr"] == "not run"
    assert found[-1]["numbers"]["note"].startswith("Your policy")

    explorer.locator(f"[data-brush='{brushes[1]}']").check()
    width, height = (heat_map.bounding_box()[side] for side in ("width", "height"))
    heat_map.hover(position={"x": 0.4 * width, "y": 0.4 * height})  # waits until the page has scrolled there
    box, mouse = heat_map.bounding_box(), explorer.page.mouse
    mouse.down()
    mouse.move(box["x"] + 0.6 * width, box["y"] + 0.4 * height + 10, steps=4)
    mouse.up()
    now = seen(explorer)["numbers"]["average"]
    assert now != found[-1]["numbers"]["average"], "the pointer paints nothing"
    explorer.locator("[data-do=reset]").click()
    assert seen(explorer)["numbers"] == stored["numbers"]


def download(explorer, folder) -> Policy:
    """The policy in the heat map, as adatsq loads the downloaded file."""
    with explorer.page.expect_download() as waiting:
        explorer.locator("[data-do=download]").click()
    waiting.value.save_as(folder / "policy.json")
    policy = Policy.load(folder / "policy.json")
    assert f"{policy.average:.3f}" == seen(explorer)["numbers"]["average"]
    return policy


def move_everything(explorer, folder) -> None:
    """All that works without a kernel, for every model."""
    moved, models = set(), explorer.locator("[name=model] option").count()
    for model in range(models):
        if explorer.locator("[name=model]").input_value() != str(model):
            choose(explorer, "model", model)
            moved.add("model")
        clip = explorer.locator("[data-do=play]")  # its frames would pass for pictures that moved
        if clip.is_visible() and clip.inner_text() == "pause":
            clip.click()
        moved |= move_selects(explorer)
        move_budget(explorer)
        paint(explorer)
        (folder / str(model)).mkdir()
        download(explorer, folder / str(model))
    still = MOVED.keys() - {"budget"} - moved
    assert not still, f"{still} had no choice, or none that changes anything: nothing to explore"
