"""What the tests share: headless Chromium, which never leaves this machine, and disks that are soon full."""

import re
import shutil
import subprocess

import pytest

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 120_000  # milliseconds that a page may take on a busy machine
ELSEWHERE = re.compile(r"^(?!file:|data:|blob:|about:|(http|ws)s?://(localhost|127\.0\.0\.1)[:/])")


class Watch:
    """Keep what goes wrong in a page: requests to other hosts (they are refused), failed ones, errors."""

    def __init__(self, page):
        self.problems = []
        page.route(ELSEWHERE, lambda route: route.abort())
        page.on("requestfailed", self.failed)
        page.on("response", self.response)
        page.on("pageerror", lambda error: self.note(f"uncaught: {error}"))
        page.on("console", self.console)

    def note(self, problem):
        self.problems.append(problem)

    def failed(self, request):
        self.note(f"{'to another host' if ELSEWHERE.match(request.url) else 'failed'}: {request.url}")

    def response(self, response):
        if response.status >= 400:
            self.note(f"{response.status}: {response.url}")

    def console(self, message):
        if message.type == "error":
            self.note(f"console: {message.text}")


@pytest.fixture
def small_disk(tmp_path):
    """Mount a disk of some MB, which SLURM's jobs see as well, at ``disk`` in the test's folder."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def mount(megabytes):
        command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", disk]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("a small disk can be mounted by root only")
        return disk

    yield mount
    if disk.is_mount():
        subprocess.run(["umount", "--lazy", disk], check=True)


@pytest.fixture(scope="session")
def browser():
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("Chromium isn't installed: apt-get install chromium (tests/run does it where it may)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser):
    page = browser.new_page(viewport={"width": 1400, "height": 950})
    page.set_default_timeout(PATIENCE)
    page.watch = Watch(page)
    yield page
    page.close()
