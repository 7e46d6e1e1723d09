"""The noise theory of attention: what noise in the tokens, or values of other tokens, does to the output.

Closed forms for given attention weights, batched over leading axes and differentiable, in the array API standard
alone. Each function says what it assumes. Where the paper (arXiv 2509.26015) states a form that needs a further
condition, ``form="paper"`` gives it and ``form="exact"``, the default, gives what holds without.
"""

from ._depth import depth_snr
from ._heads import (
    head_overlaps,
    multi_head_critical_sigma,
    multi_head_noise_energy,
    multi_head_signal_energy,
    multi_head_snr,
)
from ._heads_misaligned import multi_head_misalignment_energy, multi_head_misalignment_snr
from ._misalignment import equivalent_sigma, misalignment_energy, misalignment_snr
from ._scores import key_noise_energy, query_noise_energy
from ._values import critical_sigma, noise_bound, noise_energy, signal_energy, snr
from ._weights import effective_tokens, tempered_weights

__all__ = [
    "critical_sigma",
    "depth_snr",
    "effective_tokens",
    "equivalent_sigma",
    "head_overlaps",
    "key_noise_energy",
    "misalignment_energy",
    "misalignment_snr",
    "multi_head_critical_sigma",
    "multi_head_misalignment_energy",
    "multi_head_misalignment_snr",
    "multi_head_noise_energy",
    "multi_head_signal_energy",
    "multi_head_snr",
    "noise_bound",
    "noise_energy",
    "query_noise_energy",
    "signal_energy",
    "snr",
    "tempered_weights",
]
