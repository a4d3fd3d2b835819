"Package metadata: every value comes from settings.ini"
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

parser = ConfigParser(delimiters=["="])
parser.read(Path(__file__).parent / "settings.ini", encoding="utf-8")
cfg = parser["DEFAULT"]

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=cfg["author"],
    license="Apache-2.0",
    url=cfg["git_url"],
    python_requires=">=" + cfg["min_python"],
    packages=find_packages(include=[cfg["lib_path"] + "*"]),
    package_data={cfg["lib_path"]: ["workflows/*.ipynb", "tour/*.ipynb", "compute/sites/*.yaml", "data-catalog/*.yaml", "lattice/weights/*/*", "radio/*.yaml", "radio/weights/*/*", "detector/weights/*/*"]},
    install_requires=cfg["requirements"].split(),
    extras_require={extra: cfg[f"{extra}_requirements"].split() for extra in ("dev", "xrootd", "pulsar", "geant4")},
    entry_points={
        "console_scripts": cfg["console_scripts"].split(),
        "fsspec.specs": [f"lake={cfg['lib_path']}.lake.filesystem:LakeFileSystem"],
        "nbdev": [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"],
    },
)
