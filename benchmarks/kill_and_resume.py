"""Kill a recipe with SIGKILL inside every stage, finish it, and compare with an undisturbed run.

    python benchmarks/kill_and_resume.py pipelines/quickstart.yaml --out FOLDER [--set ...]

Runs the recipe once in FOLDER/whole. Then runs it in FOLDER/killed: each stage is killed a moment
after it begins and once more later, and the run goes on from there. In the end every file of
weights must be equal byte by byte and every number under `values` of report.json must be equal;
only measured times may differ. Exit code 1 otherwise.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from compress.recipe.files import add_set_option

# Seconds after a stage began. A stage that is done by then is killed in a later one.
DELAYS = (0.1, 1.5)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    add_set_option(parser, explanation="as of compress.pipeline")
    options = parser.parse_args()
    name = options.recipe.stem
    base = [sys.executable, "-m", "compress.pipeline", str(options.recipe)]
    base += [part for value in options.overrides for part in ("--set", value)]
    whole, killed = options.out / "whole" / name, options.out / "killed" / name
    subprocess.run([*base, "--out", str(whole)], check=True, stdout=subprocess.DEVNULL)
    stages = [
        p.parent.relative_to(whole).as_posix()
        for p in sorted(whole.rglob("result.json"), key=lambda p: p.stat().st_mtime_ns)
    ]
    for stage in stages:
        for delay in DELAYS:
            hit = _kill_inside([*base, "--out", str(killed)], killed / stage, delay)
            print(f"{stage}: {'killed' if hit else 'done before'} after {delay} s", flush=True)
    subprocess.run([*base, "--out", str(killed)], check=True, stdout=subprocess.DEVNULL)
    return _compare(whole, killed)


def _kill_inside(command: list[str], folder: Path, delay: float) -> bool:
    """Start the run and kill it `delay` seconds after the stage has begun in this process.

    Returns:
        Whether the stage was cut short; where it was quicker, the run is killed as it ends.
    """
    begun, result = folder / "fields.json", folder / "result.json"
    before = begun.stat().st_mtime_ns if begun.is_file() else None
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=os.environ)
    deadline = None
    while process.poll() is None and not result.is_file():
        if deadline is None and begun.is_file() and begun.stat().st_mtime_ns != before:
            deadline = time.monotonic() + delay
        if deadline is not None and time.monotonic() > deadline:
            break
        time.sleep(0.005)
    process.kill()
    process.wait()
    return not result.is_file()


def _compare(whole: Path, killed: Path) -> int:
    differences = []
    kept = (".safetensors", ".onnx")
    files = [p for p in whole.rglob("*") if p.suffix in kept]
    for path in files:
        if path.read_bytes() != (killed / path.relative_to(whole)).read_bytes():
            differences.append(str(path.relative_to(whole)))
    one, other = (json.loads((f / "report.json").read_text()) for f in (whole, killed))
    if one["values"] != other["values"]:
        differences.append("report.json: values")
    print(f"{len(files)} files of weights and every value compared: ", end="")
    print("all equal" if not differences else f"DIFFERENT: {', '.join(differences)}")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
