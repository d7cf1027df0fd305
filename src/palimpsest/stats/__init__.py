"""Statistics of measurements, one file a family: intervals, ROC figures, fits, paired tests, their correction, equivalence, agreement of
raters, tests that may be looked at any time, and sample sizes.

NaN and empty input raise; nothing here returns NaN. Random parts take a seed and are vectorised over resamples.
"""

from palimpsest.stats.agreement import cohen_kappa, fleiss_kappa, krippendorff_alpha
from palimpsest.stats.correction import adjusted, benjamini_hochberg, holm
from palimpsest.stats.equivalence import Equivalence, rate_difference, rates_equivalent, tost
from palimpsest.stats.fits import LogLaw, fit_log_law, spearman
from palimpsest.stats.intervals import Interval, bootstrap_interval, clopper_pearson, clustered_interval, rate_interval, wilson_interval
from palimpsest.stats.paired import (
    Comparison,
    Omnibus,
    cochran_q,
    compare_pairs,
    mcnemar,
    paired_permutation,
    paired_rate_difference,
    wilcoxon,
)
from palimpsest.stats.planning import (
    half_width,
    samples_for_difference,
    samples_for_half_width,
    samples_to_exclude,
    samples_to_see,
)
from palimpsest.stats.roc import RocCurve, auc, auc_interval, roc_curve, tpr_at_fpr, tpr_interval
from palimpsest.stats.roc_paired import auc_difference, delong_interval
from palimpsest.stats.sequential import always_valid_p, betting_e_process, mixture_e_process, mixture_interval

__all__ = [
    "Comparison",
    "Equivalence",
    "Interval",
    "LogLaw",
    "Omnibus",
    "RocCurve",
    "adjusted",
    "always_valid_p",
    "auc",
    "auc_difference",
    "auc_interval",
    "benjamini_hochberg",
    "betting_e_process",
    "bootstrap_interval",
    "clopper_pearson",
    "clustered_interval",
    "cochran_q",
    "cohen_kappa",
    "compare_pairs",
    "delong_interval",
    "fit_log_law",
    "fleiss_kappa",
    "half_width",
    "holm",
    "krippendorff_alpha",
    "mcnemar",
    "mixture_e_process",
    "mixture_interval",
    "paired_permutation",
    "paired_rate_difference",
    "rate_difference",
    "rate_interval",
    "rates_equivalent",
    "roc_curve",
    "samples_for_difference",
    "samples_for_half_width",
    "samples_to_exclude",
    "samples_to_see",
    "spearman",
    "tost",
    "tpr_at_fpr",
    "tpr_interval",
    "wilcoxon",
    "wilson_interval",
]
