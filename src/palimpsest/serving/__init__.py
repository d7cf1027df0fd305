"""Serving: attention over shared prefixes, speculative decoding, schedulers, and the HTTP server."""
