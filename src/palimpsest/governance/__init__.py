"""Governance: changes to a model's memory are admitted by measurement, rolled out by shares, watched, taken back, and logged (104).

>>> from palimpsest.governance.loop import Governor
>>> from palimpsest.governance.system import System
>>> system = System.of(model, general_texts)                   # doctest: +SKIP
>>> governor = Governor.init("governed", system)               # doctest: +SKIP
>>> item = governor.propose(request)                           # doctest: +SKIP
>>> governor.admit(item).summary["admitted"]                   # doctest: +SKIP
>>> governor.rollout(item), governor.rollback(item)            # doctest: +SKIP
"""
