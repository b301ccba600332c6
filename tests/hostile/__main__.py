"""Run many hostile cases by hand: `python -m tests.hostile 100` runs 100 of each layout."""

import sys
import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path

from tests.hostile.attack import attack
from tests.hostile.datasets import LAYOUTS

if __name__ == "__main__":
    import torchvision

    def _offline(*_: object, **__: object) -> None:
        raise OSError("no download in an attack")

    torchvision.datasets.CIFAR100 = _offline  # type: ignore[misc, assignment]
    warnings.simplefilter("error")
    counts: Counter[str] = Counter()
    for layout in (*LAYOUTS, "weights"):
        for seed in range(int(sys.argv[1])):
            with tempfile.TemporaryDirectory() as folder:
                try:
                    kind, outcome = attack(layout, seed, Path(folder))
                    counts[f"{layout}: {'loaded' if outcome == 'loaded' else 'refused'}"] += 1
                    counts[f"  {layout} {kind}"] += 1
                except Exception:
                    counts[f"{layout}: FAILED"] += 1
                    print(f"{layout} {seed}", file=sys.stderr)
                    traceback.print_exc()
    for kind, count in sorted(counts.items()):
        print(f"{count:5d} {kind}")
