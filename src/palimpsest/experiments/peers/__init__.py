"""Other libraries, run beside this one on the same token ids; each in an environment of its own, never as a dependency."""
