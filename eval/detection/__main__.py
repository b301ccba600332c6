"""`python -m eval.detection RUN_OR_BUNDLE --data DIR`: the encoder as a detector's backbone."""

from eval.transfer.command import main

if __name__ == "__main__":
    raise SystemExit(main("detection"))
