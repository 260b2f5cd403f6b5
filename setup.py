"""Copies the top-level folders that the program needs at run time into the wheel; pyproject.toml has all else.

An editable install copies nothing: `mtl_dist.resources` finds the folders beside the package there.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
FOLDERS = ("accelerate_configs", "launch", "recipes")


class BuildWithFolders(build_py):
    """Builds the package with FOLDERS inside it."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for name in FOLDERS:
            target = Path(self.build_lib) / "mtl_dist" / name
            shutil.rmtree(target, ignore_errors=True)  # no file that an earlier build has left behind
            shutil.copytree(ROOT / name, target, ignore=shutil.ignore_patterns("__pycache__"))


setup(cmdclass={"build_py": BuildWithFolders})
