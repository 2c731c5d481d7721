"""The explorer in a real JupyterLab: a server for this machine alone, Chromium, a kernel with the model."""

import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from chromium import watched
from explorer_controls import move_everything, seen, wait_until_moved
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

pytest.importorskip("jupyterlab", reason="JupyterLab is not installed: the live explorer was not moved")
ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = "04_explorer.ipynb"
# The model of few steps first, and one calibration prompt: a live run of seconds.
PARAMETERS = {"model": "../data/models/z-image-mini", "live_prompts": 1}
# No request leaves the machine, and every cell's output stays on the page, however far it is scrolled.
OPTIONS = ["--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
OPTIONS += ["--LabApp.extension_manager=readonly", "--no-browser", "--allow-root"]
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
FRAMES = """from IPython.display import HTML
from adatsq import scrub
HTML(scrub.scrub([scrub.Frame("first", "1"), scrub.Frame("second", "2")], "frame", "two numbers", first=0))"""
NOT_RUN = """() => [...document.querySelectorAll(".jp-Notebook .jp-CodeCell .jp-InputPrompt")]
    .filter(e => !/[0-9]/.test(e.textContent)).length"""
SAID = (
    '.jp-Notebook [data-mime-type="application/vnd.jupyter.stderr"], .jp-Notebook [data-mime-type$=".error"]'
)


@pytest.fixture(scope="module")
def lab(window, tmp_path_factory):
    """Address and token of a JupyterLab with the notebook in a folder of its own; ended afterwards."""
    home = tmp_path_factory.mktemp("lab")
    (home / "notebooks").mkdir()
    (home / "data").symlink_to(ROOT / "data")
    notebook = parameterize_notebook(load_notebook_node(str(ROOT / "notebooks" / NOTEBOOK)), PARAMETERS)
    notebook.cells.append(nbformat.v4.new_code_cell(FRAMES))
    nbformat.write(notebook, home / "notebooks" / NOTEBOOK)
    for name, values in SETTINGS.items():
        file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(values))
    folders = {"JUPYTER_CONFIG_DIR": "config", "JUPYTER_RUNTIME_DIR": "runtime", "IPYTHONDIR": "ipython"}
    folders |= {"JUPYTERLAB_SETTINGS_DIR": "settings", "JUPYTERLAB_WORKSPACES_DIR": "workspaces"}
    env = {**os.environ, **{name: str(home / folder) for name, folder in folders.items()}}
    env |= {"JUPYTER_TOKEN": secrets.token_hex(16), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "jupyter", "lab", "--ip=127.0.0.1", "--port=0", *OPTIONS]
    with (home / "log").open("w") as log:
        server = subprocess.Popen(
            command, cwd=home / "notebooks", env=env, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield address(server, home)
    finally:
        server.terminate()  # and with it its kernels
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def address(server: subprocess.Popen, home: Path) -> tuple[str, str]:
    """Where a server listens, and its token: it writes both down once it does."""
    for _ in range(300):
        assert server.poll() is None, f"JupyterLab ended:\n{(home / 'log').read_text()}"
        for file in (home / "runtime").glob("jpserver-*.json"):
            try:
                told = json.loads(file.read_text())
                return told["url"], told["token"]
            except json.JSONDecodeError:
                pass  # half written
        time.sleep(0.2)
    raise AssertionError(f"JupyterLab does not listen:\n{(home / 'log').read_text()}")


def is_done(explorer) -> None:
    """The kernel says so in a message of its own, after the one with the pictures."""
    explorer.locator("form.live output").get_by_text("done", exact=True).wait_for()


def run_live(explorer, text: str) -> dict:
    """What is seen after a live run of this prompt: other pictures and other numbers than before."""
    before, form = seen(explorer), explorer.locator("form.live")
    form.locator("[name=text]").fill(text)
    form.locator("button").click()
    pictures = {"quantized", "difference"} | ({"full"} if text else set())
    now = wait_until_moved(explorer, before, {"psnr"}, pictures, "live run", seconds=90)
    is_done(explorer)
    assert now["numbers"]["psnr"].endswith("dB, live") and now["numbers"]["error"].endswith(", live")
    return now


def search_live(explorer, budget: float) -> None:
    """A search for another budget than the stored ones, and a run of what it finds."""
    before, form = seen(explorer), explorer.locator("form.search")
    form.locator("[name=wanted]").fill(str(budget))
    form.locator("[name=width]").fill("1")
    form.locator("button").click()
    now = wait_until_moved(explorer, before, {"average"}, {"quantized", "difference"}, "search", seconds=120)
    is_done(explorer)
    assert 3 < float(now["numbers"]["average"]) <= budget and now["numbers"]["error"].endswith(", live")
    assert now["numbers"]["note"].startswith("Your policy")


def test_the_explorer_moves_with_its_model_behind_it(lab, window, tmp_path):
    url, token = lab
    with watched(window, own=(url, url.replace("http", "ws", 1))) as tab:
        tab.set_default_timeout(60_000)
        tab.goto(f"{url}lab/tree/{NOTEBOOK}?token={token}")
        tab.get_by_text("| Idle").first.wait_for()  # the kernel is there: before, running asks for one
        tab.get_by_role("menuitem", name="Run", exact=True).click()
        tab.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        explorer = tab.locator(".adatsq-explorer")
        explorer.locator("[name=budget]").wait_for()
        tab.wait_for_function(f"({NOT_RUN})() === 0")
        assert not tab.locator(SAID).all_inner_texts()

        frames = tab.locator("figure.adatsq-scrub")
        frames.locator("input").press("ArrowRight")
        frames.get_by_text("second").wait_for()
        frames.locator("input").press("ArrowLeft")
        frames.get_by_text("first").wait_for()
        move_everything(explorer, tmp_path)
        explorer.locator("[name=model]").select_option(index=0)
        run_live(explorer, "a red circle left of a blue square")
        heat_map = explorer.locator("[data-figure=policy] svg")
        explorer.locator("[data-reach]").select_option("step")
        for key in ("8", "ArrowRight", "8"):
            heat_map.press(key)
        assert seen(explorer)["numbers"]["psnr"] == "not run"
        run_live(explorer, "")  # the prompt of the list, the policy just painted
        search_live(explorer, 3.2)
