"""``import unbraid`` against ``import torch``: whole processes in turn, medians, and what was loaded."""

import subprocess
import sys

from timing import median_seconds, print_rows

HEAVY = ("qiskit", "matplotlib", "quimb", "transformers", "sklearn", "scipy", "pydantic")


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    torch = median_seconds(lambda: run("import torch"), least=0.0)
    ours = median_seconds(lambda: run("import unbraid"), least=0.0)
    print_rows(("import", "seconds", "ratio"), [("torch", torch, 1.0), ("unbraid", ours, ours / torch)])
    print("heavy modules loaded:", run(f"import sys, unbraid; print([m for m in {HEAVY!r} if m in sys.modules])"))


if __name__ == "__main__":
    main()
