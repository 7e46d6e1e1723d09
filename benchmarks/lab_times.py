"""How long the noise threshold explorer takes in Chromium: to its first live result, and for each move of a slider.

    python benchmarks/lab_times.py [--rounds 5] [--moves 60] [--site FOLDER] [--out FILE]

Each round opens the page in a browser context of its own, with an empty cache, and waits for the first result that
Python computed in the page; the figure from the build does not count. Then it sets n = d = 256, the largest, and moves
every slider in turn, waiting each time until the new figure is on the screen. Needs a site with the runtime
(`make lab-runtime docs`), Chromium and Playwright. It fails where 10 s or 0.1 s are exceeded.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from _machine import environment

from ia_core.conformance._files import write_whole

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "docs"))
from checks.serving import chromium_program, launched, served  # noqa: E402

FIRST, MOVE = 10.0, 0.1  # seconds that are promised

# From the event that a slider sends to the frame after the one in which its figure is drawn.
MOVES = """async (moves) => {
  const root = document.querySelector('[data-lab="explorer"]');
  const painted = () => new Promise((go) => requestAnimationFrame(() => requestAnimationFrame(go)));
  const moved = (slider, value) => new Promise((go) => {
    root.addEventListener("lab:shown", async () => { await painted(); go(performance.now() - began); }, { once: true });
    slider.value = value;
    const began = performance.now();
    slider.dispatchEvent(new Event("input", { bubbles: true }));
  });
  const sliders = [...root.querySelectorAll('[type="range"]')];
  for (const name of ["n", "d"]) await moved(root.querySelector(`[name="${name}"]`), 256);
  const found = [];
  for (let k = 0; k < moves; k += 1) {
    const [slider, turn] = [sliders[k % sliders.length], Math.floor(k / sliders.length)];
    const large = ["n", "d"].includes(slider.name);
    const value = large ? 256 - ((turn + 1) % 2) : Number(slider.min) + Number(slider.step) * (turn + 1);
    found.push([slider.name, (await moved(slider, value)) / 1000]);
  }
  return found;
}"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--moves", type=int, default=60, help="of sliders in each round")
    parser.add_argument("--site", type=Path, default=ROOT / "docs" / "_build" / "html")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "lab_times.json")
    options = parser.parse_args()
    for name in ("rounds", "moves"):
        if vars(options)[name] < 1:
            parser.error(f"`--{name}` must be at least 1; got {vars(options)[name]}")
    program = chromium_program()
    if program is None:
        parser.error("no Chromium on this machine")
    if not (options.site / "_static" / "pyodide").is_dir():
        parser.error(f"{options.site} has no Python for the browser: make lab-runtime docs")
    facts = measure(options.site, options.rounds, options.moves, program)
    write_whole(options.out, json.dumps(facts, indent=1) + "\n")
    first, moves = facts["first_seconds"], [seconds for one in facts["move_seconds"].values() for seconds in one]
    print(f"first result: median {statistics.median(first):.2f} s, most {max(first):.2f} s")
    print(f"move of a slider: median {statistics.median(moves):.4f} s, most {max(moves):.4f} s")
    return 0 if max(first) <= FIRST and max(moves) <= MOVE else 1


def measure(site: Path, rounds: int, moves: int, program: str) -> dict[str, Any]:
    load, first = os.getloadavg()[0], list[float]()
    by_slider: dict[str, list[float]] = {}
    with served(site) as origin, launched(program) as browser:
        version = browser.version
        for number in range(rounds):
            tab = browser.new_context().new_page()
            tab.goto(f"{origin}/lab/explorer.html")
            tab.wait_for_selector(".lab[data-live]", timeout=120_000)
            first.append(tab.evaluate("performance.getEntriesByName('lab-live')[0].startTime") / 1000)
            for name, seconds in tab.evaluate(MOVES, moves):
                by_slider.setdefault(name, []).append(seconds)
            tab.context.close()
            print(f"round {number + 1} of {rounds}: first result after {first[-1]:.2f} s", file=sys.stderr, flush=True)
    return {
        "date": datetime.date.today().isoformat(),
        "machine": environment(()) | {"chromium": version},
        "load_of_others": load,
        "rounds": rounds,
        "first_seconds": [round(seconds, 4) for seconds in first],
        "move_seconds": {name: [round(one, 5) for one in seconds] for name, seconds in by_slider.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
