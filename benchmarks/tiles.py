"""Images of 3000 x 3000 x 3 to tiles of 512 at reduce 2 and back to full size: images a second, besides decoding.

The images are simulated slides that are already decoded. The goal is 5 images a second on two cores. Tissue detection, and
cutting with empty tiles dropped, are measured as well, and that tiles at full resolution give back the image exactly.
"""

import argparse
import json
import os
import platform
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from hpacell.fields.slides import simulate_tissue
from hpacell.fields.tiles import cut_tiles, join_tiles
from hpacell.fields.tissue import find_tissue

SIDE, SIZE, REDUCE = 3000, 512, 2


def make_images(n: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images and masks of the size of the HuBMAP + HPA competition, enlarged from smaller slides."""
    slides = [simulate_tissue((0, i), size=750) for i in range(n)]
    whole = (SIDE, SIDE)
    return [(cv2.resize(one.image, whole, interpolation=cv2.INTER_CUBIC), cv2.resize(one.mask.astype(np.uint8), whole, interpolation=cv2.INTER_NEAREST) > 0) for one in slides]


def there_and_back(pair: tuple[np.ndarray, np.ndarray], overlap: int, masked: bool) -> tuple[int, float]:
    """Number of tiles, and the mean difference to the image (grey levels of 255) that averaging and enlarging leave."""
    image, mask = pair
    cut = cut_tiles(image, SIZE, REDUCE, overlap, mask=mask if masked else None)
    back = join_tiles(cut.tiles, cut)
    assert back.shape == image.shape
    assert not masked or join_tiles(cut.masks, cut).shape == mask.shape
    return len(cut.windows), float(cv2.absdiff(back[::8, ::8], image[::8, ::8]).mean())


def rate(function, images: list, seconds: float, workers: int) -> dict:
    """Images a second of wall clock, and seconds of processor an image, over at least so many seconds."""
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(function, images[:workers]))
        done, start, used = 0, time.perf_counter(), time.process_time()
        while time.perf_counter() - start < seconds:
            done += len(list(pool.map(function, images)))
        wall, used = time.perf_counter() - start, time.process_time() - used
    return {"images": done, "images_per_second": done / wall, "processor_seconds_an_image": used / done, "images_per_second_if_cores_were_free": workers * done / used}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10, help="least time a measurement")
    parser.add_argument("--workers", type=int, default=2, help="threads")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "tiles.json", help="JSON to write")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    load = os.getloadavg()[0]  # what else the machine had to do
    images = make_images(4)
    result = {
        "machine": {"cpu": platform.processor() or platform.machine(), "python": platform.python_version(), "workers": arguments.workers, "load_before": load},
        "image": [SIDE, SIDE, 3], "tile": SIZE, "reduce": REDUCE, "runs": [],
    }  # fmt: skip
    for overlap, masked in ((0, False), (32, False), (128, False), (32, True)):
        n_tiles, difference = there_and_back(images[0], overlap, masked)
        run = {"what": "cut and join" + ", with mask" * masked, "overlap": overlap, "tiles": n_tiles, "mean_difference": difference}
        run |= rate(partial(there_and_back, overlap=overlap, masked=masked), images, arguments.seconds, arguments.workers)
        result["runs"].append(run)
    result["runs"].append({"what": "find tissue"} | rate(lambda pair: find_tissue(pair[0]), images, arguments.seconds / 2, arguments.workers))
    image, mask = images[1]
    cut = cut_tiles(image, SIZE, overlap=64, mask=mask)
    result["exact_at_full_resolution"] = bool(np.array_equal(join_tiles(cut.tiles, cut), image) and np.array_equal(join_tiles(cut.masks, cut), mask))
    kept = cut_tiles(image, SIZE, REDUCE, tissue=find_tissue(image))
    result["tiles_dropped_as_empty"] = {"kept": len(kept.windows), "dropped": kept.n_dropped}
    for run in result["runs"]:
        print(", ".join(f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in run.items()))
    print(f"exact at full resolution: {result['exact_at_full_resolution']}")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
