"""How long a batch takes on many workers: a discrete simulation from the seconds that a report of `batch` measured.

Run by `python3 atelier.py bench scale --report OUT/report.jsonl`. What it assumes: a worker takes one content with all its
styles at a time, as `batch` does; the first result of a content takes as long as a first one that was measured, every other as
long as another that was measured, drawn at random; workers start together and take --start seconds; each ends after an
exponentially distributed time with the mean --mtbf hours, loses the result in hand, and starts anew; driver, network and disks
are never the bottleneck, which the last column lets one judge: the results that arrive per second.
"""

import argparse
import heapq
import json
import random
import sys
from pathlib import Path

GPUS = (1, 2, 4, 8, 16, 32, 64)


def measured(path: Path) -> tuple[list[float], list[float]]:
    """(seconds of the results that came first with their content, seconds of the others) on each worker, from a report."""
    first, other, last = [], [], {}
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if not entry.get("seconds"):
            continue
        content = next(iter(entry["inputs"].values()))
        (other if last.get(entry["worker"]) == content else first).append(entry["seconds"])
        last[entry["worker"]] = content
    return first, other or first


def simulate(workers: int, contents: int, styles: int, first: list[float], other: list[float], start: float, mtbf: float,
             seed: int = 0) -> tuple[float, int]:
    """(seconds until the last result, results that were lost and made again) of a run with so many workers."""
    draw = random.Random(seed)
    # (time, worker, contents' results still to make, time of this worker's next end)
    events = [(start, worker, 0, start + draw.expovariate(1 / mtbf)) for worker in range(workers)]
    heapq.heapify(events)
    left, last, lost = contents, 0.0, 0
    while events:
        now, worker, rows, end = heapq.heappop(events)
        fresh = rows == 0
        if fresh:
            if not left:
                continue
            left, rows = left - 1, styles
        done = now + draw.choice(first if fresh else other)
        if done > end:  # it starts anew, with the content's features to read again
            lost += 1
            heapq.heappush(events, (end + start + draw.choice(first), worker, rows, end + start + draw.expovariate(1 / mtbf)))
            continue
        last = max(last, done)
        heapq.heappush(events, (done, worker, rows - 1, end))
    return last, lost


def main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="bench scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path, help="report.jsonl of a batch on one worker; without it nothing is simulated")
    parser.add_argument("--contents", type=int, default=10_000, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--styles", type=int, default=50, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--start", type=float, default=60.0, metavar="SECONDS", help="of a worker (default: %(default)s)")
    parser.add_argument("--mtbf", type=float, default=24.0, metavar="HOURS", help="of a worker (default: %(default)s)")
    args = parser.parse_args(words)
    if args.report is None:
        print("scale: nothing to simulate without --report OUT/report.jsonl")
        return 0
    first, other = measured(args.report)
    if not first:
        print(f"scale: {args.report} tells no seconds of results")
        return 2
    count = args.contents * args.styles
    print(f"measured: {len(first)} first results, mean {sum(first) / len(first):.2f} s; {len(other)} others, mean {sum(other) / len(other):.2f} s")
    print(f"{args.contents} x {args.styles} = {count} results, start {args.start:g} s, a worker ends every {args.mtbf:g} h")
    print(f"{'workers':>8}{'hours':>10}{'speed-up':>10}{'efficiency':>12}{'made again':>12}{'results/s':>11}")
    alone = None
    for workers in GPUS:
        seconds, lost = simulate(workers, args.contents, args.styles, first, other, args.start, args.mtbf * 3600)
        alone = alone or seconds
        print(f"{workers:>8}{seconds / 3600:>10.2f}{alone / seconds:>10.2f}{alone / seconds / workers:>12.1%}{lost:>12}{count / seconds:>11.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
