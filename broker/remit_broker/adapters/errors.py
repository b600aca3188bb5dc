"""What is wrong with the configuration or the machine, said so that the reader can mend it."""

from __future__ import annotations


class ConfigError(Exception):
    """Start is refused. ``message`` names the file, port or key; ``ask`` says what to do. Exit code 2 on the command line."""

    def __init__(self, message: str, ask: str = "") -> None:
        super().__init__(f"{message}; {ask}" if ask else message)
        self.message = message
        self.ask = ask


class ServiceError(ConfigError):
    """A service that the configuration names cannot be reached. Exit code 3 on the command line."""
