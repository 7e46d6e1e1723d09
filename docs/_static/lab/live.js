// A live page: what the controls say goes to Python, what Python answers goes into the parts of the page.

import { call, obstacle, start } from "./python.js";

// The page's controls and parts, and the one request that may be under way. Moves that come faster than answers are
// answered once, for the last of them.
export class Live {
  constructor(root) {
    this.root = root;
    this.module = root.dataset.lab;
    this.status = root.querySelector("[data-status]");
    this.asked = false;
    this.busy = false;
    this.shown = () => {};
  }

  // Whether Python can run here; if not, the line that says why.
  begin() {
    const why = obstacle(this.root);
    if (why) {
      this.say(`The controls are off: ${why}. The figure is the one that was computed when the site was built.`);
      return false;
    }
    this.say("Starting Python; until then this is the figure that was computed when the site was built.");
    start();
    for (const input of this.inputs()) {
      input.addEventListener("input", () => this.changed());
    }
    this.refresh();
    return true;
  }

  inputs() {
    return [...this.root.querySelectorAll("[name]")];
  }

  // What the controls say: numbers of sliders, text of fields, and a list where several have one name.
  state() {
    const state = {};
    for (const input of this.inputs()) {
      const value = input.type === "range" ? Number(input.value) : input.value;
      if (input.dataset.list === undefined) state[input.name] = value;
      else (state[input.name] ??= []).push(value);
    }
    return state;
  }

  changed() {
    for (const output of this.root.querySelectorAll("output[data-of]")) {
      output.value = this.root.querySelector(`[name="${output.dataset.of}"]`).value;
    }
    this.refresh();
  }

  async refresh() {
    this.asked = true;
    if (this.busy) return;
    this.busy = true;
    try {
      while (this.asked) {
        this.asked = false;
        this.show(await call(this.module, "respond", this.state()));
      }
    } catch (error) {
      this.fail(error);
    } finally {
      this.busy = false;
    }
  }

  show(answer) {
    this.root.querySelector("fieldset").disabled = false;
    if (answer.refused) {
      this.say(answer.refused);
      return;
    }
    for (const part of this.root.querySelectorAll("[data-part]")) {
      const content = answer[part.dataset.part];
      if (part.dataset.as === "text") part.textContent = content;
      else part.innerHTML = content;
    }
    if (!this.root.dataset.live) {
      this.root.dataset.live = "yes";
      performance.mark("lab-live");
    }
    this.say("Live: computed in this page by Python.");
    this.shown(answer);
    this.root.dispatchEvent(new CustomEvent("lab:shown", { detail: answer }));
  }

  fail(error) {
    console.error(error);
    this.say(`Python stopped: ${error.message.trim().split("\n").at(-1)}`);
  }

  say(words) {
    if (this.status.textContent !== words) this.status.textContent = words;
  }
}
