"""What pyproject.toml cannot say: the recipes, which no package holds, go into the wheel.

Their only copy is in pipelines/. A wheel has it as compress/recipes, where
`compress.recipe.packaged` looks for it; an editable installation reads pipelines/ itself.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SOURCE = Path(__file__).parent / "pipelines"
TARGET = Path("compress", "recipes")


class BuildWithRecipes(build_py):
    def run(self):
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, TARGET)
            shutil.rmtree(target, ignore_errors=True)  # what an earlier build left
            shutil.copytree(SOURCE, target, ignore=shutil.ignore_patterns("__pycache__"))

    def get_outputs(self, include_bytecode=True):
        files = [path.relative_to(SOURCE) for path in SOURCE.rglob("*") if path.is_file()]
        copied = [] if self.editable_mode else [str(Path(self.build_lib, TARGET, f)) for f in files]
        return super().get_outputs(include_bytecode) + copied


setup(cmdclass={"build_py": BuildWithRecipes})
