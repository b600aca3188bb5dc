"""The ``remit`` command."""
