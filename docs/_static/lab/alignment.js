// The alignment lab: linked heat maps, and knots that learn.

import { Live } from "./live.js";
import { call } from "./python.js";

const STEPS = 40;
const root = document.querySelector('[data-lab="alignment"]');
const maps = root.querySelector('[data-part="maps"]');
const reading = root.querySelector("[data-cell]");
const button = root.querySelector("[data-learn]");
const summary = root.querySelector('[data-part="summary"]');
const live = new Live(root);
let cells = null;
let chosen = null;
let learning = false;

live.shown = (answer) => {
  cells = answer.cells;
  if (chosen && Math.max(...chosen) >= cells.x.length) chosen = null;
  const reach = cells.x.length - 1;
  for (const knot of knots()) {
    const outside = Math.abs(Number(knot.dataset.offset)) > reach;
    knot.disabled = outside;
  }
  mark();
};

if (live.begin()) {
  button.addEventListener("click", () => (learning ? (learning = false) : learn()));
  root.querySelector("[data-flatten]").addEventListener("click", () => bend(knots().map(() => 0)));
  maps.addEventListener("pointerover", ({ target }) => {
    if (target.dataset.i !== undefined) choose(Number(target.dataset.i), Number(target.dataset.j));
  });
  maps.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step || !cells) return;
    event.preventDefault();
    event.stopPropagation(); // the theme would turn the page
    const [i, j] = chosen ?? [0, 0];
    const last = cells.x.length - 1;
    const inside = (k) => Math.min(Math.max(k, 0), last);
    choose(inside(i + (chosen ? step[0] : 0)), inside(j + (chosen ? step[1] : 0)));
  });
}

function knots() {
  return [...root.querySelectorAll("[data-offset]")];
}

function bend(values) {
  knots().forEach((knot, k) => (knot.value = values[k]));
  live.changed();
}

function choose(i, j) {
  chosen = [i, j];
  mark();
}

// The same cell in all maps, and its numbers in words.
function mark() {
  for (const cell of maps.querySelectorAll(".lab-chosen")) cell.classList.remove("lab-chosen");
  if (!chosen || !cells) return;
  const [i, j] = chosen;
  for (const cell of maps.querySelectorAll(`[data-i="${i}"][data-j="${j}"]`)) cell.classList.add("lab-chosen");
  const [content, bias, weight] = [cells.content, cells.bias, cells.weights].map((map) => map[i][j]);
  reading.textContent =
    `Query ${i + 1} asks for ${cells.x[i]}; position ${j + 1} has the key ${cells.x[j]} and the value ${cells.y[j]}. ` +
    `Content ${shown(content)}, bias ${shown(bias)}, sum ${shown(content + bias)}; weight ${weight.toFixed(3)}.`;
}

function shown(number) {
  return number.toFixed(2).replace("-", "\u2212");
}

// Steps down the gradient, one picture for each, so that the reader sees the curve move; all at once for those who
// asked their system for less motion.
async function learn() {
  learning = true;
  summary.ariaLive = "off"; // or each of the steps would be read aloud
  button.textContent = "stop";
  const pause = matchMedia("(prefers-reduced-motion: reduce)").matches ? STEPS : 1;
  try {
    for (let done = 0; done < STEPS && learning; done += pause) {
      const answer = await call("alignment", "learn", { ...live.state(), steps: pause });
      if (answer.refused) {
        live.say(answer.refused);
        break;
      }
      knots().forEach((knot, k) => (knot.value = answer.knots[k]));
      await live.refresh();
    }
  } catch (error) {
    live.fail(error);
  }
  learning = false;
  summary.ariaLive = "polite";
  button.textContent = "let it learn";
}
