"""The command ``ia-core``: judge implementations (``conform``), show what is installed (``info``)."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Sequence

from . import __version__

__all__ = ["main"]

LIBRARIES = (
    *("numpy", "array-api-compat", "torch", "jax", "cupy-cuda12x", "cupy-cuda13x", "onnxruntime", "keras"),
    *("hypothesis", "pytest", "python-flint"),
)
EXTRAS = ("pytest", "hypothesis", "flint", "ml_dtypes", "rich")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit status is 0 only if nothing failed that was not declared.

    Parameters
    ----------
    arguments : sequence of str, optional
        Those of the command line by default.

    Returns
    -------
    int
        0: nothing failed; 1: something did; 2: the call was wrong; 130: interrupted.
    """
    options = _parser().parse_args(arguments)
    return int(options.run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ia-core", description="The reference of indirect attention.")
    parser.add_argument("--version", action="version", version=f"ia-core {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    conform = commands.add_parser(
        "conform",
        help="judge implementations, clause by clause",
        description="Judge implementations of indirect attention, clause by clause (docs/spec.md).",
        epilog="TARGET is module:function (with the signature of ia_core.indirect_attention; modules in the current "
        "folder are found), module:adapter (an ia_core.conformance.Implementation), or a built-in name "
        "(`ia-core info` lists them). Without a target, everything found installed is judged.",
    )
    add = conform.add_argument
    add("targets", nargs="*", metavar="TARGET")
    add("--profile", choices=("quick", "full"), default="quick", help="how many cases are drawn (default: quick)")
    add("--seed", type=int, default=0, help="the same seed draws the same cases (default: 0)")
    add("--clause", action="append", default=[], metavar="LABEL", help="only clauses whose label starts so")
    add("--library", help="of a module:function: numpy (default), torch, jax, cupy, array_api_strict")
    add("--layout", help="of a module:function: BHMD (default) or BMHD")
    add("--dtypes", help="of a module:function, with commas; the first judges semantics (default: float64,float32)")
    add("--supports", help="features that a module:function claims, with commas")
    add("--device", help="where arrays are put: cpu, cuda, ...")
    add("--html", metavar="F", help="write a report that a browser shows")
    add("--junit", metavar="F", help="write JUnit XML")
    add("--json", metavar="F", help="write everything as JSON")
    conform.set_defaults(run=_conform)
    info = commands.add_parser("info", help="show libraries, versions, devices and built-in targets")
    info.set_defaults(run=_info)
    return parser


def _conform(options: argparse.Namespace) -> int:
    missing = [name for name in EXTRAS if importlib.util.find_spec(name) is None]
    if missing:
        needs = f"`conform` needs {', '.join(missing)}; install the extra"
        print(f"ia-core: {needs}: pip install 'indirect-attention[conformance]'", file=sys.stderr)
        return 2
    from .backends import indirect_attention
    from .conformance._command import conform

    return conform(options, indirect_attention, _versions())


def _info(options: argparse.Namespace) -> int:
    print(f"ia-core {__version__}")
    print(f"Python {platform.python_version()} on {platform.platform()}, {os.cpu_count()} processors")
    for name, version in _versions().items():
        print(f"  {name:<18} {version}")
    for line in _devices():
        print(f"  {line}")
    from . import backends

    print("fast paths (ia_core.backends):")
    for path in backends.available():
        print(f"  {path.name:<18} {'ready' if path.importable else path.library + ' is not installed'}")
    if all(importlib.util.find_spec(name) for name in EXTRAS):
        from .conformance._command import catalogue
        from .conformance.adapters import installed

        print("built-in targets of `ia-core conform`:")
        print("  " + ", ".join(catalogue(backends.indirect_attention)))
        print("kernels of others found here: " + ", ".join(installed()))
    else:
        print("`ia-core conform` needs the extra: pip install 'indirect-attention[conformance]'")
    return 0


def _versions() -> dict[str, str]:
    found = {"ia-core": __version__}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _devices() -> list[str]:
    """What the installed frameworks run on; a framework that does not import says why."""
    found = []
    for name, ask in (
        ("torch", lambda m: [m.cuda.get_device_name(i) for i in range(m.cuda.device_count())] or ["cpu"]),
        ("jax", lambda m: [str(device) for device in m.devices()]),
    ):
        if importlib.util.find_spec(name):
            try:
                found.append(f"{name} runs on {', '.join(ask(importlib.import_module(name)))}")
            except Exception as error:  # a broken framework must not hide the rest
                found.append(f"{name} does not work: {error}")
    return found


if __name__ == "__main__":
    sys.exit(main())
