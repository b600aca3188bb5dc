"""The outside world behind the protocols of `remit_broker.ports`."""
