"""Write docs/methods.md, configs/methods/ and configs/entropy_controls.yaml from the registry of methods."""

from __future__ import annotations

from pathlib import Path

from benchmarks import entropy_controls
from trainorder.config.presets import presets
from trainorder.files import write_text
from trainorder.rl import catalog

ROOT = Path(__file__).parents[1]


def files() -> dict[str, str]:
    """Path -> content of all that is written."""
    configs = {
        f"{catalog.CONFIGS}/{name}.yaml": catalog.params_file(chosen)
        for name, chosen in presets().items()
    }
    return {
        catalog.PAGE: catalog.page(),
        entropy_controls.PARAMS: entropy_controls.params_text(),
        **configs,
    }


def main() -> None:
    """Write what differs; remove files of methods that are gone."""
    wanted = files()
    (ROOT / catalog.CONFIGS).mkdir(exist_ok=True)
    for old in (ROOT / catalog.CONFIGS).glob("*.yaml"):
        if f"{catalog.CONFIGS}/{old.name}" not in wanted:
            old.unlink()
    for name, text in wanted.items():
        file = ROOT / name
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            write_text(file, text)
            print(name)


if __name__ == "__main__":
    main()
