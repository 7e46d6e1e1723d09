"""Monte Carlo of the noise theory: what :mod:`ia_core.noise` says in closed form, measured by sampling.

A sampler draws what a formula takes the mean of, on the arrays' own library and device; :func:`run` draws blocks of
samples until a relative precision is reached, and its state can be saved, resumed and merged with another's.
"""

from ._draws import Sampler
from ._result import PrecisionError, Result
from ._run import run
from ._samplers import misalignment_energy, misalignment_snr, noise_energy, signal_energy, snr
from ._samplers_heads import multi_head_misalignment_snr, multi_head_snr
from ._samplers_scores import depth_snr, key_noise_energy, query_noise_energy
from ._state import State, load_state, merge, save_state

__all__ = [
    "PrecisionError",
    "Result",
    "Sampler",
    "State",
    "depth_snr",
    "key_noise_energy",
    "load_state",
    "merge",
    "misalignment_energy",
    "misalignment_snr",
    "multi_head_misalignment_snr",
    "multi_head_snr",
    "noise_energy",
    "query_noise_energy",
    "run",
    "save_state",
    "signal_energy",
    "snr",
]
