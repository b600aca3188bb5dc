"""The configuration: one TOML file, every key checked, every mistake named with its place and what is allowed."""

from remit_broker.config.keys import (
    ApprovalsConfig,
    BusConfig,
    Config,
    ContentConfig,
    HttpConfig,
    LimitsConfig,
    LogConfig,
    McpConfig,
    OAuthConfig,
    PolicyConfig,
    ResultsConfig,
    SecretsConfig,
    TracesConfig,
    VaultConfig,
)
from remit_broker.config.parts import cycle, default_rates
from remit_broker.config.reading import FILE, Settings, find, load, settings

__all__ = [
    "FILE",
    "ApprovalsConfig",
    "BusConfig",
    "Config",
    "ContentConfig",
    "HttpConfig",
    "LimitsConfig",
    "LogConfig",
    "McpConfig",
    "OAuthConfig",
    "PolicyConfig",
    "ResultsConfig",
    "SecretsConfig",
    "Settings",
    "TracesConfig",
    "VaultConfig",
    "cycle",
    "default_rates",
    "find",
    "load",
    "settings",
]
