"""How many blocks and probes a Bloom filter needs for an asked rate of false positives.

The load of a block is compound Poisson: n-grams of k bits and their groups of `GROUP_PROBES` bits fall into blocks at
random. With t balls thrown into 512 bits, X of them set, a test of k probes passes with probability E[(X / 512)^k]; both
distributions are computed exactly. The smallest filter that keeps the asked rate for n-grams and `GROUP_RATE` for groups is
taken (about 20 bits an n-gram for 1 %), with two standard deviations of blocks added for the luck of small filters.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from scipy import stats

from palimpsest.corpus.bloom_hash import GROUP_PROBES
from palimpsest.errors import InputError

BLOCK_BITS = 512  # one cache line
GROUP_RATE = 1 / 64  # false positives of the first stage
MIN_PROBES, MAX_PROBES = 3, 16
MIN_BLOCKS = 64


@cache
def _occupancy_moments(balls: int) -> np.ndarray:
    """E[(X / 512)^k] for X bits set after t balls: float64 (balls + 1, MAX_PROBES + 1)."""
    filled = np.arange(BLOCK_BITS + 1) / BLOCK_BITS
    powers = filled[:, None] ** np.arange(MAX_PROBES + 1)
    probability = np.zeros(BLOCK_BITS + 1)
    probability[0] = 1.0
    moments = np.empty((balls + 1, MAX_PROBES + 1))
    for t in range(balls + 1):
        moments[t] = probability @ powers
        probability[1:] = probability[1:] * filled[1:] + probability[:-1] * (1 - filled[:-1])
        probability[0] = 0.0
    return moments


def _expected_rates(load: float, probes: int) -> np.ndarray:
    """False-positive rate of a test with 0 … MAX_PROBES probes, with `load` n-grams and as many groups a block, both Poisson."""
    most = int(load + 10 * math.sqrt(load) + 10)
    keys = stats.poisson.pmf(np.arange(most + 1), load)
    own, groups = np.zeros(most * probes + 1), np.zeros(most * GROUP_PROBES + 1)
    own[::probes], groups[::GROUP_PROBES] = keys, keys
    balls = np.convolve(own, groups)
    return balls @ _occupancy_moments(1 << (len(balls) - 1).bit_length())[: len(balls)]


@cache
def blocks_and_probes(capacity: int, fp_rate: float) -> tuple[int, int]:
    """Blocks and probes of the smallest filter that keeps `fp_rate`."""
    best, best_probes = 0.0, MIN_PROBES
    for probes in range(MIN_PROBES, MAX_PROBES + 1):
        low, high = 0.0, 128.0  # n-grams a block; at 128 every filter is full
        for _ in range(24):
            middle = (low + high) / 2
            rates = _expected_rates(middle, probes)
            if rates[probes] <= fp_rate and rates[GROUP_PROBES] <= GROUP_RATE:
                low = middle
            else:
                high = middle
        if low > best:
            best, best_probes = low, probes
    if best < 0.25:
        raise InputError(f"The false-positive rate {fp_rate} is too small for blocks of {BLOCK_BITS} bits.", "Ask for 1e-9 or more.")
    blocks = capacity / best
    return max(MIN_BLOCKS, math.ceil(blocks + 2 * math.sqrt(blocks))), best_probes
