"""Statistics of measurements, one file a family: intervals, ROC figures, fits.

NaN and empty input raise; nothing here returns NaN. Random parts take a seed and are vectorised over resamples.
"""

from palimpsest.stats.fits import LogLaw, fit_log_law, spearman
from palimpsest.stats.intervals import Interval, bootstrap_interval, clopper_pearson, wilson_interval
from palimpsest.stats.roc import RocCurve, auc, auc_interval, roc_curve, tpr_at_fpr

__all__ = [
    "Interval",
    "LogLaw",
    "RocCurve",
    "auc",
    "auc_interval",
    "bootstrap_interval",
    "clopper_pearson",
    "fit_log_law",
    "roc_curve",
    "spearman",
    "tpr_at_fpr",
    "wilson_interval",
]
