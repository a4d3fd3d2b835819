"""Build the docs with the one command, open them from the disk in Chromium and follow every link."""

import fcntl
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "nbs" / "_docs" / "build.py"
FORMULAS_READY = "window.MathJax === undefined || MathJax.startup.promise.then(() => true)"


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """Build the site once, whatever the number of pytest's workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "site"
    with open(folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            command = [sys.executable, BUILD, "--out", folder]
            built = subprocess.run(command, capture_output=True, text=True)
            assert built.returncode == 0, built.stderr
    return folder


def pages(site):
    """List the pages; the theme leaves templates in _static."""
    return sorted(path for path in site.rglob("*.html") if "_static" not in path.parts)


def show(page, path, anchor=""):
    page.goto(path.as_uri() + anchor)
    page.wait_for_function(FORMULAS_READY)


def follow(page, link):
    with page.expect_navigation():
        link.click()


class Links(HTMLParser):
    """Collect what a page refers to and what can be referred to in it."""

    def __init__(self, path):
        super().__init__()
        self.targets, self.anchors = [], {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.targets += [attributes[name] for name in ("href", "src") if attributes.get(name)]
        self.anchors.update(attributes[name] for name in ("id", "name") if attributes.get(name))


def is_well_formed(url):
    host = re.fullmatch(r"[\w-]+(\.[\w-]+)+", url.netloc)
    return url.scheme in ("http", "https") and host and " " not in url.geturl()


def wrong_links(page, links):
    """Yield every link of a page that leads nowhere, and every malformed one."""
    for target in links[page].targets:
        url = urlsplit(target)
        if url.scheme in ("data", "mailto"):
            continue
        if url.scheme or url.netloc:
            if not is_well_formed(url):
                yield f"{page}: {target} is malformed"
            continue
        file = (page.parent / unquote(url.path)).resolve() if url.path else page
        if not file.is_file():
            yield f"{page}: {target} has no file"
        elif file in links and unquote(url.fragment) not in links[file].anchors:
            yield f"{page}: {target} has no anchor"


def test_a_folder_that_is_no_site_is_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    built = subprocess.run([sys.executable, BUILD, "--out", tmp_path], capture_output=True, text=True)
    assert built.returncode == 1 and "isn't an earlier site" in built.stderr
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_every_link_leads_somewhere(site):
    links = {page: Links(page) for page in pages(site)}
    assert sum(len(page.targets) for page in links.values()) > 1000
    assert not [wrong for page in links for wrong in wrong_links(page, links)]


def test_a_wrong_link_is_found(tmp_path):
    page, other = tmp_path / "page.html", tmp_path / "other.html"
    hrefs = ("other.html#here", "other.html#there", "none.html", "http:/x")
    page.write_text("".join(f"<a href='{href}'></a>" for href in hrefs))
    other.write_text("<p id='here'>")
    wrong = list(wrong_links(page, {path: Links(path) for path in (page, other)}))
    assert [line.split()[1] for line in wrong] == ["other.html#there", "none.html", "http:/x"]


def test_a_request_to_another_host_is_noticed(page):
    page.set_content("<img src='https://cdn.example.org/x.png'><script>nothing()</script>")
    assert any("another host: https://cdn.example.org" in problem for problem in page.watch.problems)
    assert any("nothing is not defined" in problem for problem in page.watch.problems)


def is_like_others(path):
    """Tell whether a page is a listing of source code, or an API page without formulas; one of each is opened."""
    text = path.read_text(encoding="utf-8")
    plain = 'class="math' not in text[text.find("<article") : text.find("</article>")]
    kept = "itwin_nb.core.files.html", "files.html"
    return path.name not in kept and ("_modules" in path.parts or ("api" in path.parts and plain))


def test_every_page_opens_without_network(site, page):
    """Errors, failed requests, requests to other hosts and formulas that MathJax can't read."""
    problems = {}
    for path in pages(site):
        if is_like_others(path):
            continue
        page.watch.problems.clear()
        show(page, path)
        unread = page.locator("mjx-merror, [data-mjx-error]").count()
        wrong = [*page.watch.problems, *(["MathJax can't read a formula"] if unread else [])]
        problems |= {path.relative_to(site).as_posix(): wrong} if wrong else {}
    assert not problems


def test_api_of_a_twin_is_found_from_home(site, page):
    show(page, site / "index.html")
    sidebar, text = page.get_by_role("navigation", name="Main"), page.locator("article")
    follow(page, sidebar.get_by_role("link", name="API", exact=True))
    follow(page, text.get_by_role("link", name="itwin_nb.lattice", exact=True))
    follow(page, text.get_by_role("link", name="formats", exact=True))
    signature = page.locator("[id='itwin_nb.lattice.formats.read_config']")
    assert "path" in signature.inner_text()
    description = signature.locator("xpath=following-sibling::dd[1]").inner_text()
    assert "Parameters" in description and "Returns" in description and "Raises" in description
    follow(page, signature.get_by_role("link", name="[source]"))
    assert "def read_config(" in text.inner_text()


def test_methods_added_by_patch_have_docs_and_source(site):
    page = (site / "api" / "itwin_nb.lattice.actions.html").read_text()
    assert re.search(r'href="[^"]*_modules/itwin_nb/lattice/actions\.html#Phi4\.force"', page)


def test_formulas_are_rendered_and_numbered(site, page):
    show(page, site / "lattice" / "01_actions.html")
    shapes = [box.bounding_box() for box in page.locator("article mjx-container svg").all()]
    assert len(shapes) > 10
    assert all(shape["width"] > 1 and shape["height"] > 1 for shape in shapes)
    numbers = page.locator("article .eqno").all_inner_texts()
    assert [number.strip("#\n ") for number in numbers] == [f"({n})" for n in range(1, len(numbers) + 1)]
    assert numbers


def test_plots_are_shown(site, page):
    show(page, site / "lattice" / "04_flows.html")
    plots = page.locator("article .cell_output img")
    assert plots.count() > 0
    assert all(plot.evaluate("image => image.complete && image.naturalWidth > 100") for plot in plots.all())


def test_chapters_show_results(site):
    rooms = [room for room in site.iterdir() if room.name in ("core", "learn", "compute", "lattice", "benchmarks")]
    chapters = [path for room in rooms for path in room.glob("*.html")]
    assert len(chapters) > 10
    assert not [path.name for path in chapters if "cell_output" not in path.read_text(encoding="utf-8")]


def test_formulas_in_the_sidebar_are_rendered_on_every_page(site, page):
    show(page, site / "core" / "00_errors.html")
    sidebar = page.get_by_role("navigation", name="Main")
    assert sidebar.locator(".math").count() == sidebar.locator("mjx-container svg").count()
    assert "\\(" not in sidebar.inner_text()


def test_search_finds_a_word(site, page):
    show(page, site / "index.html")
    page.get_by_role("button", name="Search").first.click()
    page.get_by_role("dialog").get_by_role("searchbox").fill("trajectory")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search.html?q=trajectory*")
    follow(page, page.locator("#search-results li a").first)
    assert "search.html" not in page.url
    assert "trajectory" in page.locator("article").inner_text().lower()
    assert not page.watch.problems


def test_citation_leads_to_the_literature(site, page):
    show(page, site / "lattice" / "01_actions.html")
    follow(page, page.locator("article a[href*='literature.html#']").first)
    entry = page.locator(page.evaluate("location.hash"))
    assert entry.is_visible() and "arXiv" in entry.inner_text()


def test_names_in_chapters_lead_to_the_api_and_back(site, page):
    show(page, site / "lattice" / "01_actions.html")
    follow(page, page.locator("p.chapter a[href*='api/']"))
    assert page.locator("article h1").inner_text().startswith("itwin_nb.lattice.actions")
    follow(page, page.locator("article").get_by_role("link", name="Actions", exact=True).first)
    assert page.url.endswith("lattice/01_actions.html")


def test_directives_of_nbdev_do_not_show(site, page):
    for path in pages(site):
        text = re.sub(r"<[^>]+>", "", path.read_text(encoding="utf-8"))
        assert not re.search(r"^#\s*\|\s*(export|hide|default_exp|eval|echo|slow)", text, re.MULTILINE), path


# --- what staging does to a notebook ---------------------------------------------------------------------


@pytest.fixture
def staged(tmp_path, monkeypatch):
    """Return a function that stages a notebook made of (type, source, tags) and gives its page's cells."""
    import nbformat

    monkeypatch.syspath_prepend(BUILD.parent)
    import stage

    def stage_cells(*cells, room="workflows"):
        path = tmp_path / "nbs" / room / "00_one.ipynb"
        path.parent.mkdir(parents=True)
        make = {"code": nbformat.v4.new_code_cell, "markdown": nbformat.v4.new_markdown_cell}
        notebook = nbformat.v4.new_notebook()
        notebook.cells = [make[kind](source, metadata={"tags": tags}) for kind, source, tags in cells]
        nbformat.write(notebook, path)
        return stage.chapter(path, tmp_path / "nbs", "https://example.org/repo")["cells"]

    return stage_cells


def test_hidden_cells_are_dropped_and_directives_stripped(staged):
    cells = staged(
        ("markdown", "# One", []),
        ("code", "#| default_exp lattice.one", []),
        ("code", "#| export\ndef f():\n    return 1", []),
        ("code", "#| hide\nimport nbdev; nbdev.nbdev_export()", []),
        ("code", "#| echo: false\nf()", []),
        room="lattice",
    )
    assert [cell["source"] for cell in cells][2:] == ["def f():\n    return 1", "f()"]
    assert [cell["metadata"]["tags"] for cell in cells[2:]] == [["export"], ["remove-input"]]
    assert "{py:mod}`itwin_nb.lattice.one`" in cells[1]["source"]


def test_imports_fold_into_one_cell(staged):
    imports = ("code", "#| export\nimport os", []), ("code", "import sys", [])
    cells = staged(("markdown", "# One", []), *imports, room="core")
    assert len(cells) == 3 and "hide-input" in cells[2]["metadata"]["tags"]
    assert "import os" in cells[2]["source"] and "import sys" in cells[2]["source"]


def test_parameters_become_a_table(staged):
    source = 'size: int = 8  # sites per side\nout: str = "runs"  # folder\nresume: bool = False  # go on'
    cells = staged(("markdown", "# One", []), ("code", source, ["parameters"]))
    assert "| `size` | int | `8` | sites per side |" in cells[2]["source"]
    assert "itwin run 00_one" in cells[1]["source"]
