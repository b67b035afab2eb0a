"""The settings: environment variables, each with its default and its rule.

This module knows nothing about the code that uses them.
"""

import ipaddress
import math
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

_PROJECT = Path(__file__).with_name("pyproject.toml")
VERSION: str = tomllib.loads(_PROJECT.read_text(encoding="utf-8"))["project"]["version"]


class SettingsError(ValueError):
    """The relay can't use a setting; the text is one line that names the variable."""


@dataclass(frozen=True)
class Settings:
    """Each field has an environment variable with the same name in upper case."""

    openrouter_api_key: str = field(default="", repr=False)
    openrouter_base_url: str = "https://openrouter.ai/api/v1"
    model_name: str = "openrouter/auto"
    app_title: str = "Chat relay"
    app_url: str = "http://localhost:8001"
    host: str = "127.0.0.1"
    port: int = 8001
    cors_origins: tuple[str, ...] = ("http://localhost:5173", "http://localhost:3000")
    allowed_hosts: tuple[str, ...] = ()  # in addition to loopback names
    auth_token: str = field(default="", repr=False)
    log_level: str = "INFO"
    log_format: str = "text"
    store_url: str = field(default="", repr=False)  # it may contain a password
    conversation_ttl: float = 0.0  # seconds; 0 means for ever
    max_tokens: int = 0  # of a reply; 0 means no limit
    reply_timeout: float = 900.0  # seconds
    shutdown_grace: float = 20.0  # seconds
    max_body_bytes: int = 1024 * 1024
    max_message_chars: int = 200_000
    max_messages: int = 2_000  # of a conversation
    max_conversations: int = 10_000
    max_store_bytes: int = 256 * 1024 * 1024  # of text
    max_replies: int = 1_000  # in progress
    max_reply_chars: int = 1_000_000

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            is_valid, requirement = _RULES.get(name) or _RULE_OF_TYPE[type(getattr(Settings, name))]
            if not is_valid(value):
                raise SettingsError(f"{name.upper()} must be {requirement}.")

    @classmethod
    def from_environ(cls, environ: Mapping[str, str | None]) -> "Settings":
        """Read the variables; a field keeps its default if its variable is missing or empty. Raises `SettingsError`."""
        values: dict[str, Any] = {}
        for setting in fields(cls):
            if text := (environ.get(setting.name.upper()) or "").strip():
                values[setting.name] = _value(setting.name.upper(), text, type(setting.default))
        return cls(**values)


def _value(variable: str, text: str, kind: type) -> Any:
    if kind is tuple:
        return tuple(part.strip().rstrip("/") for part in text.split(",") if part.strip())
    try:
        return kind(text)
    except ValueError:
        _, requirement = _RULES.get(variable.lower()) or _RULE_OF_TYPE[kind]
        raise SettingsError(f"{variable} must be {requirement}.") from None


def _is_base_url(url: str) -> bool:
    try:
        parts, port = urlsplit(url), urlsplit(url).port
        has_host = bool(httpx.URL(url).host)
    except (ValueError, httpx.InvalidURL):
        return False
    is_web = parts.scheme in ("http", "https") and not re.search(r"[\s?#@]", url) and port != 0
    return is_web and has_host and _is_host(parts.hostname or "")


def _is_origin(origin: str) -> bool:
    return bool(re.fullmatch(r"\*|null|[a-z][a-z0-9+.-]*://[^\s/?#@*]+", origin))


def _is_host(host: str) -> bool:
    try:
        return bool(ipaddress.ip_address(host.strip("[]")))
    except ValueError:  # a name that ends in a number would be a malformed address
        pattern = r"(?=.{1,253}$)(?!-)[\w-]{1,63}(\.(?!-)[\w-]{1,63})*\.?"
        return bool(re.fullmatch(pattern, host, re.ASCII)) and not re.search(r"(^|\.)\d+\.?$", host)


_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")

_Rule = tuple[Callable[[Any], bool], str]
_SECRET: _Rule = (lambda v: v.isascii() and v.isprintable(), "printable ASCII")
_SECONDS: _Rule = (lambda v: 0 <= v < math.inf, "a number of seconds, 0 or more")
_RULES: dict[str, _Rule] = {
    "openrouter_api_key": _SECRET,
    "auth_token": _SECRET,
    "openrouter_base_url": (_is_base_url, "an http:// or https:// URL without a user or a query"),
    "host": (_is_host, "an address or a name to listen on, without a port"),
    "model_name": (lambda v: v.isascii() and v.isprintable() and 0 < len(v) <= 200, "a model's id in ASCII"),
    "port": (lambda v: 0 <= v <= 65535, "a port from 0 to 65535"),
    "cors_origins": (lambda v: all(map(_is_origin, v)), "origins such as http://localhost:5173, separated by commas"),
    "allowed_hosts": (lambda v: all(map(_is_host, {*v} - {"*"})), "host names without ports, separated by commas"),
    "log_level": (lambda v: v.upper() in _LEVELS, "DEBUG, INFO, WARNING, ERROR or CRITICAL"),
    "log_format": (lambda v: v.lower() in ("text", "json"), "text or json"),
    "max_tokens": (lambda v: v >= 0, "a whole number, 0 for no limit"),
    "shutdown_grace": _SECONDS,
    "conversation_ttl": _SECONDS,
}
_RULE_OF_TYPE: dict[type, _Rule] = {
    int: (lambda v: v > 0, "a whole number above 0"),
    float: (lambda v: 0 < v < math.inf, "a number of seconds above 0"),
    str: (str.isprintable, "one line of text"),
}
