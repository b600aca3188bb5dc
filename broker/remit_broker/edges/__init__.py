"""Ways in: each turns what it receives into an :class:`~remit_broker.hop.hop.Ask` or a service call, and decides nothing."""
