// The worker: Pyodide, NumPy, and the project's own sources out of one archive. All come from the site itself.

import { loadPyodide } from "../pyodide/pyodide.mjs";

const SOURCES = "/sources";

async function begin() {
  const archive = fetch(new URL("sources.zip", import.meta.url)).then((answer) => {
    if (!answer.ok) throw new Error(`sources.zip: ${answer.status}`);
    return answer.arrayBuffer();
  });
  const python = await loadPyodide({
    indexURL: new URL("../pyodide/", import.meta.url).href,
    packages: ["numpy"],
    env: { HOME: "/home/pyodide", PYTHONDONTWRITEBYTECODE: "1" },
  });
  python.unpackArchive(await archive, "zip", { extractDir: SOURCES });
  python.runPython(`import sys; sys.path.insert(0, "${SOURCES}")`);
  return python.pyimport("lab.calls").call;
}

const ready = begin();

onmessage = async ({ data: { id, module, name, argument } }) => {
  try {
    const call = await ready;
    postMessage({ id, answer: call(module, name, argument) });
  } catch (error) {
    postMessage({ id, error: String(error.message ?? error) });
  }
};
