"""`ia-core noise` as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ia_core import noise
from ia_core._cli import main


def rows_of(path: Path) -> list[dict[str, float]]:
    return json.loads(path.read_text(encoding="utf-8"))["rows"]


def test_table_json_and_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    data, figure = tmp_path / "found.json", tmp_path / "found.svg"
    words = ["noise", "one-hot", "uniform", "--dim", "16", "--tokens", "9", "--mean", "1", "--shift", "2"]
    assert main([*words, "--simulate", "--json", str(data), "--figure", str(figure)]) == 0
    one_hot, uniform = rows_of(data)
    assert one_hot["n_eff"] == pytest.approx(1)
    assert uniform["n_eff"] == pytest.approx(9)
    assert uniform["sigma*"] == pytest.approx(np.sqrt(1 + 9))
    assert uniform["gamma"] == pytest.approx(2 * 16 / 9 + 4 * 16)
    assert uniform["gamma paper"] == 2 * 16 + 4 * 16
    assert uniform["SNR mis"] == pytest.approx((16 / 9 + 16) / uniform["gamma"])
    for row in (one_hot, uniform):
        assert abs(row["SNR measured"] - row["SNR"]) < 5.2 * row["standard error"]
    assert figure.read_text(encoding="utf-8").startswith("<?xml")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found.json", "found.svg"]
    assert "uniform " in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".npy", ".json"])
def test_weights_from_a_file(suffix: str, tmp_path: Path) -> None:
    weights = np.random.default_rng(0).dirichlet(np.ones(5), size=(2, 3))
    path, data = tmp_path / f"weights{suffix}", tmp_path / "found.json"
    if suffix == ".npy":
        np.save(path, weights)
    else:
        path.write_text(json.dumps(weights.tolist()), encoding="utf-8")
    assert main(["noise", str(path), "--mean", "0.5", "--dim", "6", "--heads", "2", "--json", str(data)]) == 0
    wanted = noise.multi_head_critical_sigma(weights, mean=np.full(6, 0.5))
    assert [row["sigma*"] for row in rows_of(data)] == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["foo"], "weights must be uniform, one-hot, softmax:S or a file .npy or .json; got `foo`"),
        (["softmax:x"], "softmax:S needs a number S; got `softmax:x`"),
        (["gone.npy"], "no file `gone.npy`"),
        (["--heads", "3"], "`--dim` must be a multiple of 3 heads; got 64"),
        (["--tokens", "0"], "`--heads` and `--tokens` must be at least 1"),
        (["--sigma", "-1"], "`sigma` must be finite and not negative; got -1.0 [IA-X-37]"),
        (["--sigma", "nan"], "`sigma` must be finite and not negative; got nan [IA-X-37]"),
        (["--mean", "nan"], "`--mean` must be finite; got nan"),
        (["--shift", "inf"], "`--shift` must be finite; got inf"),
        (["--seed", "-1"], "`--seed` must not be negative; got -1"),
        (["--simulate", "nan"], "`precision` must be between 0 and 1; got nan [IA-X-38]"),
        (["--simulate", "2"], "`precision` must be between 0 and 1; got 2.0 [IA-X-38]"),
        (["words.json"], "`words.json` must hold floats of shape (N,), (M, N) or (H, M, N); got <U1 (2,)"),
        (["off.json"], "`weights` must sum to 1"),
        (["damaged.json"], "`damaged.json` holds no array: Expecting value"),
        (["damaged.npy"], "`damaged.npy` holds no array: "),
    ],
)
def test_bad_input_is_refused(
    words: list[str], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in (("words", '["a", "b"]'), ("off", "[0.5, 0.6]"), ("damaged", "nothing")):
        Path(f"{name}.json").write_text(content, encoding="utf-8")
    Path("damaged.npy").write_bytes(b"nothing that NumPy wrote")
    assert main(["noise", *words]) == 2
    assert text in capsys.readouterr().err
