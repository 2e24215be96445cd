"""Write docs/methods.md, configs/methods/ and configs/entropy_controls.yaml from the registry of methods.

What was measured of them comes from benchmarks/entropy_controls.csv, and so does the table in docs/findings.md.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks import entropy_controls, measured
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
    verdicts = measured.verdicts(measured.read(), entropy_controls.LEFT_OUT)
    findings = (ROOT / entropy_controls.PAGE).read_text(encoding="utf-8")
    return {
        catalog.PAGE: catalog.page(verdicts),
        entropy_controls.PAGE: entropy_controls.findings(findings),
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
