// Edit and run: every Python cell of a page opens in a text field, and runs after the cells above it.

import { call, obstacle, stop } from "./python.js";

const data = document.querySelector("#lab-cells");
const cells = JSON.parse(data.textContent);
const shown = cells.filter((cell) => cell.number);
const blocks = [...document.querySelectorAll("div.cell div.cell_input")];
let running = null;

// A page whose blocks and cells do not agree shows its cells as they are.
if (!obstacle(data) && blocks.length === shown.length) blocks.forEach((block, k) => offer(block, shown[k]));

function element(kind, properties, ...children) {
  const made = Object.assign(document.createElement(kind), properties);
  made.append(...children);
  return made;
}

function offer(block, cell) {
  const open = element("button", { type: "button", className: "lab-button lab-open", textContent: "edit and run" });
  open.setAttribute("aria-label", `edit and run cell ${cell.number}`);
  block.after(open);
  open.addEventListener("click", () => {
    open.remove();
    block.after(editor(block, cell));
  });
}

function editor(block, cell) {
  const original = cell.code;
  const field = element("textarea", { value: original, spellcheck: false, rows: original.split("\n").length });
  field.setAttribute("aria-label", `code of cell ${cell.number}`);
  const run = element("button", { type: "button", className: "lab-button", textContent: "run" });
  const reset = element("button", { type: "button", className: "lab-button", textContent: "reset" });
  const output = element("pre", { className: "lab-output" });
  output.setAttribute("role", "status");
  output.tabIndex = 0;
  field.addEventListener("input", () => {
    cell.code = field.value;
    field.rows = field.value.split("\n").length;
  });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey || event.shiftKey)) {
      event.preventDefault();
      run.click();
    }
  });
  run.addEventListener("click", () => (running === run ? stop() : execute(cell, run, output)));
  reset.addEventListener("click", () => {
    field.value = cell.code = original;
    field.rows = original.split("\n").length;
  });
  const hint = element("span", { className: "lab-hint", textContent: "Ctrl + Enter runs it" });
  block.hidden = true;
  queueMicrotask(() => field.focus());
  return element("div", { className: "lab-editor" }, field, run, reset, hint, output);
}

async function execute(cell, run, output) {
  if (running) {
    output.textContent = "Another cell is running; stop it first.";
    return;
  }
  running = run;
  run.textContent = "stop";
  output.className = "lab-output";
  output.textContent = "Running; the first run starts Python.";
  try {
    const last = cells.indexOf(cell);
    const answer = await call("cells", "run", { cells: cells.slice(0, last + 1) });
    output.classList.toggle("lab-failed", Boolean(answer.error));
    output.textContent = [...answer.notes, answer.output.trimEnd(), answer.error].filter(Boolean).join("\n") || "No output.";
  } catch (error) {
    output.classList.add("lab-failed");
    output.textContent = error.message.trim().split("\n").at(-1);
  }
  running = null;
  run.textContent = "run";
}
