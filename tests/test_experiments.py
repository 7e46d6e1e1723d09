"""The runner on tiny settings: it goes on where it was stopped, and its records say how they were made."""

from __future__ import annotations

import ctypes
import importlib
import json
import lzma
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments import _cache, _cli, _registry
from experiments._cache import versions
from experiments._results import RESULTS
from experiments.report import _checksums
from experiments.report._checksums import checksums
from experiments.synthetic import VARIANTS
from experiments.synthetic import quick as little

pytest.importorskip("torch")
pytest.importorskip("optax")


def run(folder: Path, *more: str, name: str = "retrieval: query-run cross") -> int:
    return _cli.main(["synthetic", "--quick", "--only", name, "--seeds", "2", "--out", str(folder), *more])


def results(folder: Path) -> dict[str, Any]:
    paths = sorted(folder.rglob("*.json"))
    return {str(path.relative_to(folder)): json.loads(path.read_text(encoding="utf-8")) for path in paths}


def test_a_stopped_run_goes_on_with_the_same_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "whole") == 0
    whole = results(tmp_path / "whole")
    assert len(whole) == 4  # with and without the bias
    assert run(tmp_path / "parts", "--seconds", "1e-9") == 3
    assert "units are left" in capsys.readouterr().out
    one = _registry.units("synthetic", 2, 1, quick=True, only="retrieval: query-run cross")[0]
    stopped = tmp_path / "parts" / next(iter(whole))
    stopped.parent.mkdir(parents=True)
    stopped.write_text(json.dumps(whole[next(iter(whole))]), encoding="utf-8")
    before = stopped.stat().st_mtime_ns
    assert run(tmp_path / "parts") == 0
    assert stopped.stat().st_mtime_ns == before
    parts = results(tmp_path / "parts")
    assert {name: record["results"] for name, record in parts.items()} == {
        name: record["results"] for name, record in whole.items()
    }
    assert one.options == little(VARIANTS[one.variant])


def test_another_framework_does_not_replace_results(capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in RESULTS.rglob("*.json")}
    assert _cli.main(["synthetic", "--framework", "torch", "--only", "sorting: indirect"]) == 2
    assert re.search(
        r"that jax made, and torch would replace: .*--framework jax.*--out.*--again", capsys.readouterr().err
    )
    assert before == {path: path.stat().st_mtime_ns for path in RESULTS.rglob("*.json")}


def test_every_record_names_its_options_versions_and_machine(tmp_path: Path) -> None:
    assert run(tmp_path, "--framework", "jax", "--stack", "2", name="run cross with the bias") == 0
    for record in results(tmp_path).values():
        assert record["options"]["model"] == "query-run"
        assert {"processor", "python", "numpy", "jax", "optax"} <= record["environment"].keys()
        assert record["stack"] == 2
        assert 0 <= record["results"]["accuracy"] <= 1


@pytest.mark.parametrize(("name", "only"), [("osod", "zeroed"), ("retrieval", "indirect"), ("speech", "padded")])
def test_a_little_of_each_experiment_runs(
    name: str, only: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_cache, "CACHE", tmp_path / "cache")
    if name == "speech":
        pytest.importorskip("espeakng_loader")
    assert _cli.main([name, "--quick", "--only", only, "--out", str(tmp_path / "out")]) == 0
    (record,) = results(tmp_path / "out").values()
    assert only in record["variant"]


@pytest.mark.parametrize("name", ["synthetic", "osod"])
def test_tuning_looks_at_seeds_and_draws_of_its_own(name: str) -> None:
    found = _registry.units(name, None, 1, quick=False, only="")
    tuning = {(unit.draw, *unit.seeds) for unit in found if unit.variant.startswith("tuning")}
    others = {(unit.draw, *unit.seeds) for unit in found if not unit.variant.startswith("tuning")}
    assert tuning == {(_registry.experiment(name).TUNING_DRAW, seed) for seed in (100, 101, 102)}
    assert not {seed for _, seed in tuning} & {seed for _, seed in others}
    if name == "osod":  # whose seeds share their data
        assert not {draw for draw, _ in tuning} & {draw for draw, _ in others}


def test_a_damaged_cache_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_cache, "CACHE", tmp_path)
    made: list[int] = []

    def make() -> dict[str, Any]:
        made.append(1)
        return {"numbers": np.arange(1000) + len(made)}

    assert _cache.cached("some", make)["numbers"][0] == 1
    assert _cache.cached("some", make)["numbers"][0] == 1
    other = lzma.decompress((tmp_path / "some.npz.xz").read_bytes()).replace(
        (np.int64(500)).tobytes(), (np.int64(501)).tobytes()
    )
    (tmp_path / "some.npz.xz").write_bytes(lzma.compress(other))
    assert _cache.cached("some", make)["numbers"][0] == 2
    assert "made again" in capsys.readouterr().out


def test_data_keep_the_versions_that_made_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for owner in (_cache, _checksums):
        monkeypatch.setattr(owner, "CACHE", tmp_path)
    monkeypatch.setattr(_cache, "versions", lambda: "python of yesterday")
    _cache.cached("some", lambda: {"numbers": np.arange(3)})
    monkeypatch.setattr(_cache, "versions", lambda: "python of today")
    assert list(_cache.cached("some", dict)) == ["numbers"]
    known = checksums(tmp_path / "data.json")["some"]
    assert known["made with"] == "python of yesterday"
    assert known["sha256"] == _cache.checksum({"numbers": np.arange(3)})


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kept"), [("osod", "osod0"), ("retrieval", "retrieval0"), ("speech", "speech0")])
def test_data_made_again_have_the_committed_checksum(
    name: str, kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = json.loads((RESULTS / "data.json").read_text(encoding="utf-8"))[kept]
    if known["made with"] != versions():
        pytest.skip(f"made with {known['made with']}; here are {versions()}")
    monkeypatch.setattr(_cache, "CACHE", tmp_path)
    importlib.import_module(f"experiments.{name}._data").load(0, quick=False)
    assert str(_cache.read(tmp_path / f"{kept}.npz.xz")["checksum"]) == known["sha256"]


def test_without_espeak_one_line_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    monkeypatch.setattr(ctypes, "CDLL", _missing)
    monkeypatch.setattr(_cache, "CACHE", tmp_path)
    assert _cli.main(["speech", "--quick", "--out", str(tmp_path)]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"eSpeak NG is needed .* pip install espeakng-loader, or apt-get install libespeak-ng1", line)


def _missing(name: str) -> None:
    raise OSError(name)
