"""The command ``ia-core``: judge implementations, repeat a failure, golden vectors, and what is installed here."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Sequence
from typing import Any

from . import __version__, _noise_command

__all__ = ["main"]

LIBRARIES = (
    *("numpy", "array-api-compat", "torch", "jax", "cupy-cuda12x", "cupy-cuda13x", "onnxruntime", "keras"),
    *("dask", "cubed", "triton"),
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
    add("--xfails", metavar="F", help="failures that are expected: `IA-S-06[float16]  reason` on each line")
    add("--save", metavar="DIR", help="save every case that fails, for `ia-core replay` and as a script of its own")
    _add_limits(conform)
    add("--html", metavar="F", help="write a report that a browser shows")
    add("--junit", metavar="F", help="write JUnit XML")
    add("--json", metavar="F", help="write everything as JSON")
    add("--markdown", metavar="F", help="write a table for a README")
    add("--badge", metavar="F", help="write an SVG badge")
    _add_self_test(conform)
    _add_sweep(conform, "processes that judge side by side; of a self-test by default one for each processor")
    conform.set_defaults(run=_conform)
    replay = commands.add_parser(
        "replay",
        help="repeat a saved case",
        description="Judge an implementation by the clause and on the case in a file that `conform --save` wrote.",
        epilog="What the file says of library, layout, device and features holds unless it is given here.",
    )
    replay.add_argument("case", metavar="CASE.safetensors")
    replay.add_argument("target", metavar="TARGET", help="as for `ia-core conform`")
    for option in ("--library", "--layout", "--supports", "--device"):
        replay.add_argument(option, help="as for `ia-core conform`")
    _add_limits(replay)
    replay.set_defaults(run=_replay)
    _add_vectors(commands)
    noise = _noise_command.add_parser(commands)
    _add_sweep(noise, "of --simulate: processes side by side, one for each of WEIGHTS")
    noise.set_defaults(run=_noise)
    info = commands.add_parser("info", help="show libraries, versions, devices and built-in targets")
    info.set_defaults(run=_info)
    return parser


def _add_vectors(commands: Any) -> None:
    vectors = commands.add_parser("vectors", help="golden vectors, for programs in any language (docs/vectors.md)")
    actions = vectors.add_subparsers(required=True, metavar="ACTION", dest="action")
    export = actions.add_parser("export", help="write the set into a folder")
    export.add_argument("folder", metavar="DIR", help="empty, or made")
    verify = actions.add_parser("verify", help="see whether a set is whole, to the last bit")
    verify.add_argument("folder", metavar="SET", nargs="?", help="by default the one that is installed")
    check = actions.add_parser("check", help="judge the results that a program wrote")
    check.add_argument("folder", metavar="DIR", help="with *.safetensors, and perhaps not-supported.txt")
    check.add_argument("--vectors", metavar="SET", help="that was answered; by default the one that is installed")
    check.add_argument("--all", action="store_true", help="show every vector that failed or is missing")
    check.add_argument("--json", metavar="F", help="write the verdicts as JSON")
    vectors.set_defaults(run=_vectors)


def _add_self_test(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--self-test",
        nargs="?",
        const="matrix",
        choices=("matrix", "named"),
        help="judge no target, but the suite itself: does it convict every known bug? Every clause on every bug "
        "(matrix, the default), or those a bug is filed under, and the rest for what survives them (named)",
    )
    add("--seeds", type=int, default=1, metavar="K", help="of a self-test: so many seeds from --seed on (default: 1)")


def _add_limits(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--timeout", type=float, metavar="S", help="seconds for a clause in a dtype (default: 120, in full 600)")
    add("--memory", type=float, metavar="GIB", help="memory it may use (default: 8 GiB, at most 3/4 of the machine's)")
    add("--in-process", action="store_true", help="judge in this process, which a crash then ends: for debuggers")


def _add_sweep(parser: argparse.ArgumentParser, workers: str) -> None:
    add = parser.add_argument
    add("--workers", type=int, metavar="N", help=workers)
    add("--dask", metavar="tcp://...", help="run on the cluster of this dask.distributed scheduler")
    add("--keep", metavar="DIR", help="keep what is finished there, and go on from what is there")


def _submit(options: argparse.Namespace) -> Any:
    """What runs units on a cluster, if one is named.

    Raises
    ------
    ImportError
        Without dask.distributed.
    """
    if not options.dask:
        return None
    from .backends._dask_sweep import on_cluster

    return on_cluster(options.dask)


def _noise(options: argparse.Namespace) -> int:
    try:
        return _noise_command.run(options, _submit(options))
    except ImportError as error:
        print(f"ia-core: `--dask` needs the extra: pip install 'indirect-attention[dask]' ({error})", file=sys.stderr)
        return 2


def _conform(options: argparse.Namespace) -> int:
    if _is_missing("conform"):
        return 2
    if options.self_test:
        from .conformance._kills import run_self_test

        return run_self_test(options, _versions())
    from .backends import indirect_attention
    from .conformance._command import conform

    try:
        submit = _submit(options)
    except ImportError as error:
        print(f"ia-core: `--dask` needs the extra: pip install 'indirect-attention[dask]' ({error})", file=sys.stderr)
        return 2
    return conform(options, indirect_attention, _versions(), submit)


def _replay(options: argparse.Namespace) -> int:
    if _is_missing("replay"):
        return 2
    from .backends import indirect_attention
    from .conformance._replay import replay

    return replay(options, indirect_attention)


def _vectors(options: argparse.Namespace) -> int:
    if _is_missing("vectors"):
        return 2
    from .conformance._vectors_command import run

    return run(options)


def _is_missing(command: str) -> bool:
    """Say so where the extra is not installed."""
    missing = [name for name in EXTRAS if importlib.util.find_spec(name) is None]
    if missing:
        needs = f"`{command}` needs {', '.join(missing)}; install the extra"
        print(f"ia-core: {needs}: pip install 'indirect-attention[conformance]'", file=sys.stderr)
    return bool(missing)


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
