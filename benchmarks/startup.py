"""How long a user waits before anything happens: import hpacell, hpacell --help, and the doors to each floor.

Each is the median of several fresh processes, beside a bare Python. Writes benchmarks/results/startup.json.
"""

import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

CASES = {
    "bare python": ["-c", "pass"],
    "import hpacell": ["-c", "import hpacell"],
    "hpacell --help": ["-m", "hpacell", "--help"],
    "import hpacell.fields.read": ["-c", "import hpacell.fields.read"],
    "import hpacell.pipeline.extract": ["-c", "import hpacell.pipeline.extract"],
    "import hpacell.models.training": ["-c", "import hpacell.models.training"],
}


def seconds(arguments: list[str], repeats: int = 5) -> float:
    """Median wall time of a fresh Python, seconds."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
        times.append(time.perf_counter() - start)
    return round(statistics.median(times), 3)


if __name__ == "__main__":
    measured = {name: seconds(arguments) for name, arguments in CASES.items()}
    for name, value in measured.items():
        print(f"{name:34} {value:6.2f} s")
    out = Path(__file__).parent / "results" / "startup.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps({"python": sys.version.split()[0], "seconds": measured}, indent=1) + "\n")
