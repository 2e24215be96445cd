"""What pyproject.toml cannot say: the wheel carries copies of the files with which `trainorder init` begins a project."""

import importlib.util
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
spec = importlib.util.spec_from_file_location("project", ROOT / "trainorder" / "project.py")
project = importlib.util.module_from_spec(spec)
spec.loader.exec_module(project)  # as a file: the package is not installed yet


class WithTemplate(build_py):
    """Copies the project's files behind the package, but not where the package is used in place."""

    def run(self) -> None:
        """Build, then copy."""
        super().run()
        if self.editable_mode:
            return
        for name, path in project.files(ROOT).items():
            copy = Path(self.build_lib) / "trainorder" / project.CARRIED / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


setup(cmdclass={"build_py": WithTemplate})
