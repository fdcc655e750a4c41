"""Pairs of commands at once on shared folders: each pair ends as one after the other would, or one is refused by the lock.

`python tests/pairs.py` runs fifty of them, some with trainings; `tests/test_pairs.py` runs six without.
"""

import argparse
import hashlib
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from torture import DifferenceError, Runner, check

VOLATILE = {".lock", ".building.lock", "signatures.json", "done.jsonl", "log.csv", "card.json", "model.weights.h5", "test_cells.parquet"}
IN_USE = "expected to be the only one who writes"
# Commands by name. Outputs lie in `work`, inputs in `given`, which nobody changes.
COMMANDS = {
    "extract": "extract {given}/fields --labels {given}/fields/labels.csv --out {work}/store --size 16 --workers 1",
    "extract some": "extract {given}/some --labels {given}/fields/labels.csv --out {work}/store --size 16 --workers 1",
    "extract zstd": "extract {given}/fields --labels {given}/fields/labels.csv --out {work}/store --size 16 --workers 1 --compression zstd",
    "segment": "segment {given}/fields --out {work}/masks --method classical --workers 1",
    "segment some": "segment {given}/some --out {work}/masks --method classical --workers 1",
    "export tar": "export {work}/store --to webdataset --out {work}/out",
    "export png": "export {work}/store --to png --out {work}/out",
    "convert": "convert {given}/fields {work}/out --to labels",
    "convert coco": "convert {given}/fields {work}/cells.json --to coco",
    "convert rows": "convert {given}/fields {work}/cells.json --to coco --target nuclei",
    "import": "import {given}/tar --out {work}/imported",
    "import png": "import {given}/png --out {work}/imported --size 8",
    "verify": "verify {work}/store",
    "repair": "verify {work}/store --repair --workers 1",
    "score": "score {given}/submission.csv {given}/submission.csv",
}
LEARNED = {
    "train": "train {given}/store --epochs 1 --seed 0 --out {work}/model",
    "train another": "train {given}/store --epochs 1 --seed 1 --out {work}/model",
    "predict": "predict {given}/fields --model {given}/model --out {work}/found --workers 1 --overlays 2",
    "predict some": "predict {given}/some --model {given}/model --out {work}/found --workers 1 --overlays 0",
    "explore": "explore {given}/some --runs {work}/runs",
    "run": "run {given}/explore.yaml --runs {work}/runs",
}
SHARING = [  # commands that meet in a folder
    ["extract", "extract some", "extract zstd", "verify", "repair", "export tar", "export png"],
    ["segment", "segment some"], ["export tar", "export png", "convert"], ["convert coco", "convert rows"], ["import", "import png"],
    ["score", "extract", "segment"],
]  # fmt: skip
LEARNERS = [["train", "train another"], ["predict", "predict some"], ["explore", "run"]]


def snapshot(folder: Path) -> dict[str, str]:
    """Digest of each file that is the same whenever the same is done."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    kept = [path for path in files if path.name not in VOLATILE and not path.name.endswith(".tmp") and not {"tensorboard", "runs"} & set(path.parts)]
    return {path.relative_to(folder).as_posix(): hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest() for path in kept}


def check_whole(work: Path) -> None:
    """Weights are those of their card, with its scores; and a store is sound."""
    from hpacell.feed.verify import verify_store
    from hpacell.files import fingerprint

    if (work / "model").exists():
        check(not (work / "model" / "unfinished.json").exists(), "a training is not finished, though one ended well")
        card = json.loads((work / "model" / "card.json").read_text())
        check(card["weights_blake2b"] == fingerprint((work / "model" / "model.weights.h5").read_bytes()), "weights of another card")
        check(card["scores"] and (work / "model" / "test_cells.parquet").exists(), "a model without its scores")
    for store in (path.parent for path in work.glob("*/manifest.json")):
        report = verify_store(store)
        check(report, report)
    check(not list(work.glob("*.partial")), f"left behind: {list(work.glob('*.partial'))}")
    for record in work.glob("runs/*/run.json"):
        check(json.loads(record.read_text())["status"] == "finished", f"{record}: not finished")


class Pairs:
    """Inputs, a folder to work in, and what commands leave one after the other."""

    def __init__(self, folder: Path, runner: Runner, learned: bool = False, n_fields: int = 6):
        from hpacell.fields.simulate import simulate_fields

        self.folder, self.runner, self.known = folder, runner, {}
        self.given, self.base, self.work = folder / "given", folder / "base", folder / "work"
        simulate_fields(self.given / "fields", n_fields=n_fields, seed=3, size=(96, 96))
        shutil.copytree(self.given / "fields", self.given / "some", ignore=shutil.ignore_patterns("sim_3_00000_*", "truth"))
        self.base.mkdir()
        self.work = self.base
        for name in ("extract some", "segment some"):  # so that there is a former state
            self.run(name)
        self.given_of_export("tar", "webdataset")
        self.given_of_export("png", "png")
        (self.given / "submission.csv").write_text("ID,ImageWidth,ImageHeight,PredictionString\n")
        (self.given / "explore.yaml").write_text(f"workflows:\n  explore:\n    fields: {self.given}/some\n    n_examples: 1\n")
        if learned:
            words = ["extract", self.given / "fields", "--labels", self.given / "fields" / "labels.csv", "--out", self.given / "store", "--size", 16, "--workers", 1]
            check(runner.run(*words).wait() == 0, "no store to learn from")
            run = runner.run("train", self.given / "store", "--epochs", 1, "--out", self.given / "model", fresh=True)
            check(run.wait() == 0, run.text)
        self.work = folder / "work"

    def given_of_export(self, name: str, to: str) -> None:
        run = self.runner.run("export", self.base / "store", "--to", to, "--out", self.given / name)
        check(run.wait() == 0, run.text)

    def start(self, name: str):
        words = (COMMANDS | LEARNED)[name].format(given=self.given, work=self.work).split()
        return self.runner.start(*words, fresh=name in LEARNED)

    def run(self, name: str):
        run = self.start(name)
        run.wait()
        return run

    def reset(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.base, self.work)

    def after(self, *names: str) -> tuple[dict[str, str], list[int]]:
        """What commands leave one after the other, and how each of them ends."""
        if names not in self.known:
            self.reset()
            codes = [self.run(name).wait() for name in names]
            self.known[names] = snapshot(self.work), codes
        return self.known[names]

    def pair(self, first: str, second: str, offset: float, kill: float | None) -> str:
        """Two commands at once, the second a little later; with `kill`, the first is killed then and started again. What came of it."""
        self.reset()
        runs = {0: self.start(first)}
        time.sleep(offset)
        runs[1] = self.start(second)
        was_killed = False
        if kill is not None:
            time.sleep(kill)
            was_killed = runs[0].kill() < 0
            if was_killed:
                runs[0] = self.start(first)
        codes = [runs[0].wait(), runs[1].wait()]
        texts = [runs[0].text, runs[1].text]
        for text in texts:
            check("Traceback" not in text and "unexpected " not in text, text)
        refused = [code == 2 and IN_USE in text for code, text in zip(codes, texts, strict=True)]
        check(not all(refused), f"both were refused: {texts}")
        how = self._compare((first, second), codes, refused, texts)
        check_whole(self.work)
        return how + (", killed and started again" if was_killed else "")

    def _compare(self, names: tuple[str, str], codes: list[int], refused: list[bool], texts: list[str]) -> str:
        """Which order the outcome is that of."""
        found = snapshot(self.work)
        at_once = Path(shutil.move(self.work, self.folder / "at once"))
        orders = {0: [(0, 1), (1, 0)], 1: [(refused.index(False),)]}[sum(refused)]
        seen = []
        try:
            for order in orders:
                expected, expected_codes = self.after(*(names[i] for i in order))
                wrong = sorted(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))
                if not wrong and [codes[i] for i in order] == expected_codes:
                    return "one refused" if any(refused) else "as one after the other"
                seen.append((order, expected_codes, wrong[:5]))
        finally:
            shutil.rmtree(self.work, ignore_errors=True)
            shutil.move(at_once, self.work)
        raise DifferenceError(f"ended with {codes} {texts}, unlike {seen}")


def draw_pairs(n: int, seed: int, n_learned: int) -> list[tuple[str, str, float, float | None]]:
    """Commands that share a folder, when the second begins, and when the first is killed."""
    draw, drawn = random.Random(seed), []
    for number in range(n):
        group = draw.choice(LEARNERS if number < n_learned else SHARING)
        scale = 8 if number < n_learned else 0.5
        drawn.append((draw.choice(group), draw.choice(group), draw.uniform(0, scale), draw.uniform(0, scale) if draw.random() < 0.3 else None))
    return drawn


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--learned", type=int, default=8, help="so many of them train, predict, explore or run")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder, found, n_wrong = Path(tempfile.mkdtemp(prefix="pairs-")), Counter(), 0
    runner = Runner(folder)
    try:
        pairs = Pairs(folder, runner, learned=arguments.learned > 0)
        for number, (first, second, offset, kill) in enumerate(draw_pairs(arguments.pairs, arguments.seed, arguments.learned)):
            try:
                how = pairs.pair(first, second, offset, kill)
            except DifferenceError as error:
                how, n_wrong = f"DIFFERENCE: {error}", n_wrong + 1
            found[how.split(":")[0]] += 1
            print(f"{number:3} {first} + {second}: {how}", flush=True)
    finally:
        runner.close()
    print(dict(found))
    if not n_wrong:
        shutil.rmtree(folder)
    return 1 if n_wrong else 0


if __name__ == "__main__":
    sys.exit(main())
