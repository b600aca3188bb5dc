"""A hop: one hand-over from a caller to a callee. The pipeline is one tuple in :mod:`remit_broker.hop.pipeline`."""
