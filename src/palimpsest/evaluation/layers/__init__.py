"""The four layers of memory measured: parametric, contextual, external, and procedural/episodic (system 104, section C)."""
