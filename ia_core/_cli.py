"""The command ``ia-core``: judge implementations (``conform``), show what is installed (``info``)."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from . import __version__

if TYPE_CHECKING:
    from .conformance import Implementation

__all__ = ["main"]

LIBRARIES = (
    *("numpy", "array-api-compat", "torch", "jax", "cupy", "onnxruntime", "keras"),
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
        return _usage(
            f"`conform` needs {', '.join(missing)}; install the extra: pip install 'indirect-attention[conformance]'"
        )
    from .conformance._targets import Options, resolve, select_clauses
    from .conformance.plugin import ConformanceRun

    def listed(text: str | None) -> tuple[str, ...] | None:
        return None if text is None else tuple(word.strip() for word in text.split(",") if word.strip())

    said = Options(options.library, options.layout, listed(options.dtypes), listed(options.supports), options.device)
    builtin = _builtin()
    try:
        clauses = select_clauses(options.clause)
        if options.targets:
            implementations = [resolve(target, said, builtin) for target in options.targets]
        else:
            implementations = _everything(builtin, options.device)
        run = ConformanceRun(implementations, clauses, profile=options.profile, seed=options.seed)
    except (TypeError, ValueError) as error:
        return _usage(str(error))
    return _judge(run, options)


def _judge(run: Any, options: argparse.Namespace) -> int:
    import pytest
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from .conformance._report import print_report, summary, write_html, write_json

    wide = Console()
    console = wide if wide.is_terminal else Console(width=150)
    total = len(run.implementations) * len(run.clauses)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
    task = bar.add_task("judging", total=total)
    run.on_verdict = lambda v: bar.update(task, advance=1, description=f"{v.implementation} {v.label}")
    # The user's own pytest set-up is for their tests: nothing of it may take part in a verdict.
    os.environ.pop("PYTEST_ADDOPTS", None)
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    arguments = ["--pyargs", "ia_core.conformance.suite", "-p", "ia_core.conformance.plugin", "--noconftest"]
    arguments += ["-p", "no:terminal", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", os.getcwd()]
    arguments += [f"--junitxml={os.path.abspath(options.junit)}"] if options.junit else []
    with bar:
        status = pytest.main(arguments, plugins=[run])
    complete = len(run.verdicts) == total
    data = summary(run.verdicts, versions=_versions(), profile=options.profile, seed=options.seed, complete=complete)
    print_report(console, run.verdicts)
    if options.html:
        write_html(options.html, data, run.verdicts)
    if options.json:
        write_json(options.json, data)
    if status == pytest.ExitCode.INTERRUPTED:
        console.print(f"interrupted after {len(run.verdicts)} of {total} verdicts", style="bold")
        return 130
    if not complete:
        console.print(f"only {len(run.verdicts)} of {total} verdicts were reached (pytest: {status})", style="bold red")
        return 1
    return int(any(verdict.bad for verdict in run.verdicts))


def _builtin() -> dict[str, Callable[[], Implementation]]:
    """Built-in targets by name: the reference, our fast paths, and everybody else's kernels."""
    from .conformance import Implementation
    from .conformance._own import DTYPES, EVERYTHING, reference
    from .conformance.adapters import BUILTIN

    def fast(library: str) -> Implementation:
        from . import backends

        return Implementation(
            backends.indirect_attention,
            f"ia-{library}",
            library=library,
            dtypes=DTYPES,
            supports=EVERYTHING if library in ("torch", "jax") else EVERYTHING - {"grad"},
            target=f"ia-{library}",
        )

    found: dict[str, Callable[[], Implementation]] = {}
    for library in ("numpy", "torch", "jax", "cupy", "array_api_strict"):
        found[f"reference-{library}"] = partial(reference, library)
    for library in ("numpy", "torch", "jax", "cupy"):
        found[f"ia-{library}"] = partial(fast, library)
    return found | dict(BUILTIN)


def _everything(builtin: dict[str, Callable[[], Implementation]], device: str | None) -> list[Implementation]:
    """The reference on NumPy, our fast paths on what is installed, and the kernels of others."""
    import dataclasses

    from .conformance.adapters import installed

    names = ["reference-numpy"]
    names += [f"ia-{library}" for library in ("numpy", "torch", "jax") if importlib.util.find_spec(library)]
    names += ["ia-cupy"] if importlib.util.find_spec("cupy") and _cuda() else []
    found = [builtin[name]() for name in [*names, *installed()]]
    if device in (None, "cpu"):
        return found
    on_device = [one for one in found if one.library in ("torch", "jax", "cupy")]
    return [dataclasses.replace(one, device=device) for one in on_device]


def _cuda() -> bool:
    try:
        import importlib

        return bool(importlib.import_module("cupy").cuda.runtime.getDeviceCount())
    except Exception:  # no driver, no device, or a cupy that does not import: there is nothing to judge
        return False


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
        from .conformance.adapters import installed

        print("built-in targets of `ia-core conform`:")
        print("  " + ", ".join(_builtin()))
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


def _usage(text: str) -> int:
    print(f"ia-core: {text}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
