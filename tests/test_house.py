"""Check that generated files are what notebooks make, that notebooks are clean, and the package complete."""

import ast
import base64
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).parents[1]
NBS = ROOT / "nbs"
NOTEBOOKS = sorted(
    path for path in NBS.rglob("*.ipynb") if not re.search(r"/[._]", path.relative_to(NBS.parent).as_posix())
)
BIN = Path(sys.executable).parent
FIGURE_LIMIT = 50_000  # bytes
CHANGES_BETWEEN_RUNS = re.compile(r"(?<!\w)/(?:tmp|root|home|work|var|Users)/|\bat 0x[0-9a-f]{6,}")


def run(*command, cwd=ROOT, **environment):
    """Run a program of this environment and return what it printed."""
    env = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", **environment}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def copy(tmp_path):
    """A copy of all that is made by hand or by nbdev, on which tools may write."""
    for name in ("nbs", "itwin_nb", "data-catalog"):
        shutil.copytree(
            ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("settings.ini", "setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def contents(folder, suffix):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob(f"*{suffix}")}


def test_modules_are_what_notebooks_export(copy):
    for module in (copy / "itwin_nb").rglob("*.py"):
        module.unlink()
    run("nbdev_export", cwd=copy)
    made, kept = contents(copy / "itwin_nb", ".py"), contents(ROOT / "itwin_nb", ".py")
    assert set(made) == set(kept)
    assert [name for name in kept if made[name] != kept[name]] == []


def test_notebooks_are_clean(copy):
    run("nbdev_clean", cwd=copy)
    cleaned, kept = contents(copy / "nbs", ".ipynb"), contents(NBS, ".ipynb")
    assert [name for name in kept if cleaned[name] != kept[name]] == []


@pytest.fixture(scope="module")
def readme():
    spec = spec_from_file_location("readme", NBS / "_docs" / "readme.py")
    maker = module_from_spec(spec)
    spec.loader.exec_module(maker)
    return maker


def test_readme_is_what_index_makes(readme):
    assert readme.main(check=True) == []


def test_readme_maker(readme, tmp_path):
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output, new_raw_cell

    pixel = base64.b64encode(b"a picture").decode()
    figure = new_output("display_data", {"image/png": pixel})
    cells = [
        new_raw_cell("skip: me"),
        new_markdown_cell(
            "[chapter](core/00_errors.ipynb) [law](../LICENSE) [web](https://x.org) ![p](images/p.png)"
        ),
        new_code_cell("#| hide\nsecret = 1"),
        new_code_cell("#| echo: false\nplot()", outputs=[figure]),
        new_code_cell("#| export\nshown = 2"),
    ]
    (tmp_path / "nbs").mkdir()
    nbformat.write(new_notebook(cells=cells), tmp_path / "nbs" / "index.ipynb")
    assert "README.md" in readme.main(tmp_path, check=True)
    readme.main(tmp_path)
    assert readme.main(tmp_path, check=True) == []
    text = (tmp_path / "README.md").read_text()
    for link in (
        "(nbs/core/00_errors.ipynb)",
        "(LICENSE)",
        "(https://x.org)",
        "(nbs/images/p.png)",
        "shown = 2",
    ):
        assert link in text
    assert not re.search(r"secret|plot\(|skip|#\|", text)
    (image,) = re.findall(r"\((nbs/images/readme_\S+)\)", text)
    assert (tmp_path / image).read_bytes() == b"a picture"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.relative_to(NBS).as_posix())
def test_notebook_outputs_are_small_and_the_same_in_every_run(path):
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", []):
            figure = output.get("data", {}).get("image/png", "")
            assert len(base64.b64decode(figure)) < FIGURE_LIMIT, (
                f"figure of more than {FIGURE_LIMIT} bytes: {cell.source}"
            )
            assert output.output_type != "error", cell.source
            rest = {
                key: value for key, value in output.get("data", {}).items() if not key.startswith("image/")
            }
            found = CHANGES_BETWEEN_RUNS.search(json.dumps([output.get("text", ""), rest]))
            assert not found, f"output with a path or an address ({found[0]}): {cell.source}"
            assert not re.search(r"eyJ[\w-]+\.eyJ", json.dumps([output.get("text", ""), rest])), cell.source  # a token


def is_import(node):
    """Say whether a statement only imports; `if TYPE_CHECKING:` over imports counts."""
    return isinstance(node, (ast.Import, ast.ImportFrom)) or (
        isinstance(node, ast.If) and all(map(is_import, node.body))
    )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.relative_to(NBS).as_posix())
def test_imports_stand_in_cells_of_their_own(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code" and not re.search(r"^\s*[%!]", cell.source, re.MULTILINE):
            kinds = {is_import(node) for node in ast.parse(cell.source).body}
            assert len(kinds) < 2, f"imports mixed with other code: {cell.source}"


@pytest.fixture(scope="module")
def settings():
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return parser["DEFAULT"]


def test_metadata_agree(settings):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    codemeta = json.loads((ROOT / "codemeta.json").read_text(encoding="utf-8"))
    name, version, url = settings["lib_name"], settings["version"], settings["git_url"]
    assert (citation["title"], citation["version"], citation["repository-code"]) == (name, version, url)
    assert (codemeta["name"], codemeta["version"], codemeta["codeRepository"]) == (name, version, url)
    assert (
        citation["license"] == "Apache-2.0" and codemeta["license"] == "https://spdx.org/licenses/Apache-2.0"
    )
    assert [author["name"] for author in citation["authors"]] == [
        author["name"] for author in codemeta["author"]
    ]
    assert settings["min_python"] in codemeta["softwareRequirements"][0]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## (\S+)", changes, re.MULTILINE)[1] == version


def test_every_requirement_is_pinned(settings):
    pins = {
        re.match(r"[\w.-]+", line)[0].lower()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    asked = {
        re.match(r"[\w.-]+", word)[0].lower()
        for word in f"{settings['requirements']} {settings['dev_requirements']}".split()
    }
    assert asked - pins == set()


def test_wheel_holds_modules_workflows_and_licence(copy):
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", copy / "dist", copy)
    (wheel,) = (copy / "dist").glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    for room in ("workflows", "tour"):
        assert {f"itwin_nb/{room}/{path.name}" for path in (NBS / room).glob("*.ipynb")} <= held
    assert {f"itwin_nb/{name}" for name in contents(ROOT / "itwin_nb", ".py")} <= held
    assert {f"itwin_nb/data-catalog/{path.name}" for path in (ROOT / "data-catalog").glob("*.yaml")} <= held
    assert any(name.endswith("LICENSE") for name in held)


def test_chapters_are_run_as_tests(tmp_path):
    """Chapters run, a failed cell shows itself, slow cells wait, drafts and workflows are left out."""
    from nbformat.v4 import new_code_cell, new_notebook

    for name in (
        "settings.ini",
        ".pytest.ini",
        "nbs/conftest.py",
        "tests/conftest.py",
        "tests/options.py",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    cells = {
        "room/00_good.ipynb": "assert 1 + 1 == 2",
        "room/01_wrong.ipynb": "assert 1 + 1 == 3, 'arithmetic'",
        "room/02_slow.ipynb": "#| slow\nraise ValueError('ran the slow cell')",
        "room/_draft.ipynb": "raise ValueError('ran a draft')",
        "workflows/job.ipynb": "raise ValueError('ran a workflow')",
    }
    for name, source in cells.items():
        (tmp_path / "nbs" / name).parent.mkdir(exist_ok=True)
        nbformat.write(new_notebook(cells=[new_code_cell(source)]), tmp_path / "nbs" / name)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    usual = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    slow = subprocess.run([*command, "--slow", "nbs"], cwd=tmp_path, capture_output=True, text=True)
    assert "1 failed, 2 passed" in usual.stdout and "AssertionError: arithmetic" in usual.stdout
    assert "2 failed, 1 passed" in slow.stdout and "ran the slow cell" in slow.stdout
    assert not re.search("ran a (draft|workflow)", slow.stdout)
