// Python off the main thread: one worker for the page, started when it is first needed.

let worker = null;
let next = 0;
const waiting = new Map();

// Start the worker ahead of the first call, where one will surely come.
export function start() {
  if (worker) return;
  worker = new Worker(new URL("worker.js", import.meta.url), { type: "module" });
  worker.onmessage = ({ data }) => {
    const { resolve, reject } = waiting.get(data.id);
    waiting.delete(data.id);
    if ("error" in data) reject(new Error(data.error));
    else resolve(JSON.parse(data.answer));
  };
  worker.onerror = (event) => stop(event.message || "the worker could not be started");
}

// Call a function of the laboratory with an object; a promise of the object that it returns.
export function call(module, name, argument) {
  start();
  return new Promise((resolve, reject) => {
    waiting.set(next, { resolve, reject });
    worker.postMessage({ id: next, module, name, argument: JSON.stringify(argument) });
    next += 1;
  });
}

// End whatever runs; the next call starts anew.
export function stop(reason = "stopped") {
  worker?.terminate();
  worker = null;
  for (const { reject } of waiting.values()) reject(new Error(reason));
  waiting.clear();
}

// Why Python cannot run on this page, in words; empty if it can.
export function obstacle(root) {
  if (location.protocol === "file:") return "Python in the browser needs the site to be served over HTTP";
  if (root.dataset.runtime !== "yes") return "this copy of the site was built without the Python runtime";
  if (typeof WebAssembly !== "object") return "this browser has no WebAssembly";
  return "";
}
