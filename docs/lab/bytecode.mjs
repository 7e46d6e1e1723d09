// node bytecode.mjs ORIGINALS INTO LIBRARY WHEEL LOCK: docs/lab/bytecode.py in the Pyodide of a folder.

import { readFileSync } from "node:fs";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const [originals, into, ...names] = process.argv.slice(2);
const { loadPyodide } = await import(pathToFileURL(resolve(originals, "pyodide.mjs")).href);
const python = await loadPyodide({ indexURL: resolve(originals) });
python.mountNodeFS("/originals", resolve(originals));
python.mountNodeFS("/into", resolve(into));
python.runPython(readFileSync(join(dirname(fileURLToPath(import.meta.url)), "bytecode.py"), "utf-8"));
python.globals.set("names", names);
python.runPython('compile_runtime(Path("/originals"), Path("/into"), *names.to_py())');
