"""Settings: the tree with its defaults, how a file and the environment fill it, and what must hold in it."""

from gateway.config.loading import load
from gateway.config.render import Setting, defaults_toml, env_names, render_toml, settings
from gateway.config.rules import is_loopback, validate
from gateway.config.secrets import Secret, api_key, callback_secrets, secret
from gateway.config.tree import (
    AuthConfig,
    CallbackConfig,
    Config,
    DeepgramConfig,
    JobsConfig,
    LogConfig,
    PrerecordedConfig,
    RegionConfig,
    ResumeConfig,
    RouteConfig,
    ServerConfig,
    SessionConfig,
    SidecarConfig,
    StoreConfig,
)

__all__ = [
    "AuthConfig",
    "CallbackConfig",
    "Config",
    "DeepgramConfig",
    "JobsConfig",
    "LogConfig",
    "PrerecordedConfig",
    "RegionConfig",
    "ResumeConfig",
    "RouteConfig",
    "Secret",
    "ServerConfig",
    "SessionConfig",
    "Setting",
    "SidecarConfig",
    "StoreConfig",
    "api_key",
    "callback_secrets",
    "defaults_toml",
    "env_names",
    "is_loopback",
    "load",
    "render_toml",
    "secret",
    "settings",
    "validate",
]
