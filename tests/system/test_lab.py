"""Open the tours as a reader does: `itwin lab`, run all cells, move the widgets, see the plot follow."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ITWIN = Path(sys.executable).with_name("itwin")
TOURS = [  # name, number of the slider that a plot follows, whether it follows a button as well
    ("lattice", 0, True),
    pytest.param("radio", 0, False, marks=pytest.mark.slow),
    pytest.param("radio_live", 1, True, marks=pytest.mark.slow),
    pytest.param("detector", 0, True, marks=pytest.mark.slow),
]
START, RUN, FOLLOW = 120, 240, 120  # seconds for the server, for all cells, for a plot after a widget moved
QUIET = ["news_url=None", "check_for_updates_class=jupyterlab.NeverCheckForUpdate"]

WIDGET = ".jp-OutputArea .jupyter-widgets"
SLIDER = f"{WIDGET} .noUi-handle"
BUTTON = f"{WIDGET} button.jupyter-button:enabled, .jp-OutputArea button.jupyter-button:enabled"
PLOT = ".jp-OutputArea img, .jp-OutputArea canvas, .jp-RenderedSVG svg"

# What the reader sees of the plots: images by their content, canvases (ipympl) and drawings by what they show
PLOTS = """() => [
    ...[...document.querySelectorAll('.jp-OutputArea img')].map(image => image.src),
    ...[...document.querySelectorAll('.jp-OutputArea canvas')].map(canvas => canvas.toDataURL()),
    ...[...document.querySelectorAll('.jp-RenderedSVG svg')].map(drawing => drawing.outerHTML)
].join('|')"""

FAILED = '.jp-OutputArea [data-mime-type="application/vnd.jupyter.stderr"]:has-text("Traceback")'
DONE = """() => [...document.querySelectorAll('.jp-Notebook .jp-CodeCell')].every(cell =>
    /\\[\\d+\\]/.test(cell.querySelector('.jp-InputPrompt').innerText)
    || !cell.querySelector('.cm-content')?.innerText.trim()
) || [...document.querySelectorAll('.jp-OutputArea')].some(area => area.innerText.includes('Traceback'))"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(url, server, seconds):
    end = time.monotonic() + seconds
    while server.poll() is None and time.monotonic() < end:
        try:
            return urllib.request.urlopen(url, timeout=5).status
        except OSError:
            time.sleep(0.3)
    return None


def stop(server):
    """Interrupt the server (twice, as it asks whether one means it), so that it ends its kernels."""
    for _ in range(2):
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
            time.sleep(0.2)
    try:
        server.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.fixture
def lab(tmp_path, browser):
    """Start JupyterLab on the project's notebooks; give its address and the folder of the copies."""
    port, folder = free_port(), tmp_path / "notebooks"
    options = ["--no-browser", "--port", str(port), "--ServerApp.port_retries=0", "--IdentityProvider.token="]
    options += ["--allow-root", *(f"--LabApp.{option}" for option in QUIET)]
    own = {name: str(tmp_path / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    command = [ITWIN, "lab", "--folder", folder, *options]
    with open(tmp_path / "lab.log", "w") as log:
        server = subprocess.Popen(
            command, cwd=tmp_path, env={**os.environ, **own}, stdout=log, stderr=log, start_new_session=True
        )
    try:
        status = wait_for(f"http://127.0.0.1:{port}/api/status", server, START)
        assert status == 200, (tmp_path / "lab.log").read_text()
        yield f"http://127.0.0.1:{port}", folder
    finally:
        stop(server)


def open_notebook(page, address, name):
    page.goto(f"{address}/lab/tree/{name}?reset")
    page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=START * 1000)
    # The menu asks for a kernel if it is used before this one is connected
    page.get_by_text(re.compile(r"\| Idle")).wait_for(timeout=START * 1000)


def run_all(page):
    """Run all cells and wait until each has been executed, or one has failed."""
    page.click('.lm-MenuBar-itemLabel:text-is("Run")')
    page.click('.lm-Menu-item[data-command="runmenu:run-all"]')
    page.wait_for_function(DONE, timeout=RUN * 1000)
    failed = page.locator(FAILED)
    assert failed.count() == 0, failed.first.inner_text()
    page.get_by_text(re.compile(r"\| Idle")).wait_for(timeout=RUN * 1000)


def follows(page, act):
    """Say whether the plots change, and come to rest, after `act`."""
    before = page.evaluate(PLOTS)
    act()
    try:
        page.wait_for_function(f"before => ({PLOTS})() !== before", arg=before, timeout=FOLLOW * 1000)
    except Exception as error:
        if "Timeout" not in str(error):
            raise
        return False
    return True


@pytest.mark.parametrize(("tour", "slider", "button"), TOURS)
def test_tour_runs_and_its_plot_follows_the_widgets(lab, page, tour, slider, button):
    (address, folder), name = lab, f"tour/{tour}.ipynb"
    assert (folder / name).is_file(), f"{name} isn't among {sorted(folder.rglob('*.ipynb'))}"
    open_notebook(page, address, name)
    run_all(page)
    page.locator(WIDGET).first.wait_for(timeout=FOLLOW * 1000)
    page.locator(PLOT).first.wait_for(timeout=FOLLOW * 1000)
    assert follows(page, lambda: page.locator(SLIDER).nth(slider).press("ArrowRight")), "no plot followed the slider"
    assert not button or follows(page, page.locator(BUTTON).first.click), "no plot followed the button"
    assert not [problem for problem in page.watch.problems if "another host" in problem]
