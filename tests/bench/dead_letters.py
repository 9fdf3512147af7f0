# SPDX-License-Identifier: GPL-3.0-or-later
"""What counting and archiving a large dead letter queue cost beside jq and zstd:  make bench

Counting a million lines stands beside `jq -r .failure_reason FILE | sort | uniq -c`, and archiving a gigabyte beside
`zstd -T1` of the same file; each pair runs in turn, in processes of its own, over a file whose pages are cached. Ratios
are taken within each round; quoted is their median. It is no test.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RUN = r"""
import json, re, sys, time
sys.path.insert(0, sys.argv[1])
from ansible_collections.oncall.runbooks.plugins.module_utils import dead_letter_archive, dead_letters
began = time.perf_counter()
if sys.argv[2] == "count":
    entries = dead_letters.tally([sys.argv[3]]).entries
else:
    entries = dead_letter_archive.archive(dead_letter_archive.Options(sys.argv[3], sys.argv[4]))["entries"]
seconds = time.perf_counter() - began
# Of this program alone; getrusage begins with what its parent had.
kib = int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])
print(json.dumps({"entries": entries, "seconds": seconds, "kib": kib}))
"""


def make(path: Path, lines: int, least_bytes: int = 0) -> int:
    """Dead letters of some 700 bytes, as Vritti writes them; how many."""
    chance = random.Random(1)  # noqa: S311 - the same file every time
    words = ["".join(chance.choices("etaoinshrdlu", k=chance.randint(2, 10))) for _number in range(3000)]

    def text(count: int) -> str:
        return " ".join(chance.choices(words, k=count))

    moment, written = datetime(2026, 11, 1, tzinfo=UTC), 0
    with path.open("w") as file:
        while written < lines or (least_bytes and file.tell() < least_bytes):
            written += 1
            moment += timedelta(seconds=1)
            entry = {
                "timestamp": moment.isoformat(),
                "episode_id": written,
                "customer_id": f"customer-{chance.randrange(200)}",
                "failure_reason": "persistence_failed_after_retries",
                "reflection": {
                    "root_cause": text(12),
                    "preconditions": {"tool": text(1), "environment": text(2)},
                    "resolution_strategy": text(15),
                    "environment_factors": [text(2), text(2)],
                    "affected_components": [text(1)],
                    "generalization_score": round(chance.random(), 3),
                    "confidence_score": round(chance.random(), 3),
                    "llm_model": "x-ai/grok-4.1-fast:free",
                    "generated_at": moment.isoformat(),
                    "cost_usd": 0.0,
                    "generation_latency_ms": 3000 * chance.random(),
                    "tier": "cheap",
                },
            }
            file.write(json.dumps(entry) + "\n")
    return written


def ours(what: str, path: Path, *more: Path) -> dict[str, float]:
    command = [sys.executable, "-c", RUN, str(ROOT / "collections"), what, str(path), *map(str, more)]
    told: dict[str, float] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    return told


def shell(command: str) -> float:
    began = time.perf_counter()
    subprocess.run(["sh", "-c", command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--mebibytes", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    for program in ("jq", "zstd"):
        if not shutil.which(program):
            sys.exit(f"{program} is not installed; it is what the figures stand beside (apt-get install {program})")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        few, large, queue = folder / "lines.log", folder / "large.log", folder / "failed_reflections.log"
        make(few, options.lines)
        written = make(large, 0, options.mebibytes << 20)
        counting, archiving = [], []
        for _number in range(options.rounds):
            few.read_bytes()
            counted = ours("count", few)
            assert counted["entries"] == options.lines
            counting.append((counted, shell(f"jq -r .failure_reason '{few}' | sort | uniq -c")))
            shutil.copyfile(large, queue)
            archived = ours("archive", queue, folder)
            assert archived["entries"] == written
            archiving.append((archived, shell(f"zstd -q -f -T1 '{large}' -o '{folder}/reference.zst'")))
            for made in folder.glob("failed_reflections*"):
                made.unlink()
        size, packed = large.stat().st_size, (folder / "reference.zst").stat().st_size
    print(f"{options.lines} lines; {size >> 20} MiB, which zstd makes {packed >> 20}; {options.rounds} rounds, medians")
    for what, pairs, other, wanted in (
        ("counting", counting, "jq | sort | uniq -c", 0.5),
        ("archiving", archiving, "zstd -T1", 1.2),
    ):
        ratio = statistics.median(mine["seconds"] / theirs for mine, theirs in pairs)
        own = statistics.median(mine["seconds"] for mine, _theirs in pairs)
        others = statistics.median(theirs for _mine, theirs in pairs)
        memory = max(mine["kib"] for mine, _theirs in pairs) / 1024
        print(f"{what:<10} {own:6.2f} s   {other:<20} {others:6.2f} s   ratio {ratio:.2f} (wanted: {wanted})")
        print(f"  memory   {memory:6.1f} MiB{' (wanted: below 64)' if what == 'archiving' else ''}")


if __name__ == "__main__":
    main()
