"""Where a node's configuration comes from: flags, variables, file, defaults, in that order.

Role: collects raw values with their origin, and turns the winners into a `Config`.
Callers: the commands `serve` and `config show`.

    --name n1  >  KVNODE_NAME  >  ETCD_NAME  >  name: n1 (--config-file)  >  default

Flags are read as Go reads etcd's: -name and --name, =value or the next argument, and a switch
without a value. The file is YAML with etcd's keys, or TOML with the same ones if it ends in .toml.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvnode.base.config import OPTIONS, Config, complete, parse_flag, parse_option
from kvnode.base.errors import ConfigError
from kvnode.base.foreign import (
    FEATURE_GATES,
    INERT,
    REFUSED,
    SECTIONS,
    is_foreign,
    present_name,
    section_flag,
)

CONFIG_FILE = "config-file"
PREFIXES = ("KVNODE_", "ETCD_")
# Variables (or beginnings of them) that are read elsewhere.
_OTHER_VARIABLES = (
    "KVNODE_ENDPOINTS", "KVNODE_TOKEN", "KVNODE_EXT", "KVNODE_SANITIZE", "KVNODE_COVERAGE",
    "KVNODE_FAILPOINT", "KVNODE_TEST_", "KVNODE_SEED", "KVNODE_PEERS", "ETCD_UNSUPPORTED_ARCH",
)  # fmt: skip


@dataclass(frozen=True)
class Loaded:
    """A Config, the origin of each of its values by flag name, and warnings for the operator."""

    config: Config
    origin: dict[str, str]
    warnings: list[str] = field(default_factory=list)

    def rows(self) -> list[tuple[str, str, str]]:
        """(flag, value as one would write it, origin) of each option."""
        return [
            (name, write_value(getattr(self.config, name.replace("-", "_")), name), origin)
            for name, origin in self.origin.items()
        ]


def load_config(arguments: Sequence[str], environ: Mapping[str, str]) -> Loaded:
    """Reads everything; ConfigError says which value is wrong, where it came from, what to do."""
    warnings: list[str] = []
    flags = parse_flags(arguments)
    variables = read_variables(environ, warnings)
    path = flags.get(CONFIG_FILE) or next(
        (variables[p][CONFIG_FILE] for p in PREFIXES if CONFIG_FILE in variables[p]), ""
    )
    layers: list[tuple[str, Mapping[str, Any]]] = [
        ("flag", flags),
        *((prefix, variables[prefix]) for prefix in PREFIXES),
        (f"file {path}", read_file(path) if path else {}),
    ]
    values: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for name in OPTIONS:
        setters = [(source, layer[name]) for source, layer in layers if name in layer]
        if not setters:
            origin[name] = "default"
            continue
        source, raw = setters[0]
        origin[name] = _origin(source, name)
        try:
            values[name] = parse_option(name, raw)
        except ConfigError as error:
            if source == "flag":
                raise
            raise ConfigError(f"{error} (from {origin[name]})") from None
        for shadowed, _ in setters[1:]:
            if shadowed in PREFIXES and setters[0][0] in ("flag", *PREFIXES):
                warnings.append(f"{_origin(shadowed, name)} is not used: {origin[name]} wins")
    for source, layer in layers:
        _check_foreign(source, layer, warnings)
    config = complete(values)
    for name in OPTIONS:
        if name not in values and getattr(config, name.replace("-", "_")) != _default(name):
            origin[name] = "default, derived"
        elif name in values and not OPTIONS[name].acts and values[name] != _default(name):
            warnings.append(f"--{name} ({origin[name]}) is kept, but has no effect in this version")
    return Loaded(config, origin, warnings)


def _origin(source: str, name: str) -> str:
    if source in PREFIXES:
        return "variable " + source + name.upper().replace("-", "_")
    return f"flag --{name}" if source == "flag" else source


def _default(name: str) -> Any:
    return Config.__dataclass_fields__[name.replace("-", "_")].default


def _check_foreign(source: str, layer: Mapping[str, Any], warnings: list[str]) -> None:
    """etcd's flags without a meaning here: a warning or, where one would rely on it, an error."""
    for name, raw in layer.items():
        if name in INERT:
            if name == "feature-gates" and raw:
                _check_gates(_origin(source, name), raw)
            if _is_set(raw):
                warnings.append(f"--{name} ({_origin(source, name)}) {INERT[name][1]}")
        elif name in REFUSED and _is_set(raw):
            raise ConfigError(
                f"{_origin(source, name)} can't be kept: {REFUSED[name][1]}. Remove it"
            )


def _check_gates(where: str, raw: Any) -> None:
    """--feature-gates: a name that etcd has not is a mistake there, too."""
    for part in str(raw).split(","):
        name, equals, value = part.strip().partition("=")
        if name in FEATURE_GATES and equals and value.lower() in ("true", "false"):
            continue
        close = difflib.get_close_matches(name, FEATURE_GATES, n=1, cutoff=0.6)
        hint = f"; did you mean {close[0]}=true?" if close and not equals else ""
        hint = f"; did you mean {close[0]}?" if close and equals else hint
        raise ConfigError(f'{where}: "{part}" is no NAME=true|false of a feature gate{hint}')


def _is_set(raw: Any) -> bool:
    try:
        return parse_flag(raw)
    except ValueError:
        return bool(raw)


# --- flags ----------------------------------------------------------------------------------------


def parse_flags(arguments: Sequence[str]) -> dict[str, str]:
    """Raw values by flag name; the last of a repeated flag wins."""
    flags: dict[str, str] = {}
    at = 0
    while at < len(arguments):
        word = arguments[at]
        at += 1
        if not word.startswith("-") or word in ("-", "--"):
            raise ConfigError(f'"{word}" is not a flag: serve takes only --flags')
        given, equals, value = word.lstrip("-").partition("=")
        name = present_name(given)
        if name != CONFIG_FILE and name not in OPTIONS and not is_foreign(name):
            raise ConfigError(f"unknown flag --{given}{suggest(name, '--')}")
        if equals:
            flags[name] = value
        elif _is_switch(name):
            flags[name] = "true"
        elif at < len(arguments):
            flags[name] = arguments[at]
            at += 1
        else:
            raise ConfigError(f"--{name} needs a value: --{name}=VALUE")
    return flags


def _is_switch(name: str) -> bool:
    if name in OPTIONS:
        return OPTIONS[name].parse is parse_flag
    foreign = REFUSED.get(name) or INERT.get(name)
    return foreign is not None and foreign[0] is bool


def suggest(name: str, prefix: str = "") -> str:
    """'; did you mean --x?' or ''."""
    known = [*OPTIONS, CONFIG_FILE, *INERT, *REFUSED]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {prefix}{close[0]}?" if close else ""


# --- variables ------------------------------------------------------------------------------------


def read_variables(environ: Mapping[str, str], warnings: list[str]) -> dict[str, dict[str, str]]:
    """Raw values by prefix and flag name; unknown ones of our prefixes become warnings."""
    found: dict[str, dict[str, str]] = {prefix: {} for prefix in PREFIXES}
    for variable in sorted(environ):
        for prefix in PREFIXES:
            if not variable.startswith(prefix) or variable.startswith(_OTHER_VARIABLES):
                continue
            name = present_name(variable[len(prefix) :].lower().replace("_", "-"))
            if name in OPTIONS or name == CONFIG_FILE or is_foreign(name):
                if environ[variable] != "":
                    found[prefix][name] = environ[variable]
            else:
                warnings.append(f"unknown variable {variable} is ignored{suggest(name, '--')}")
    return found


# --- file -----------------------------------------------------------------------------------------


def read_file(path: str) -> dict[str, Any]:
    """Raw values by key; ConfigError when the file can't be read or has an unknown key."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise ConfigError(f"--config-file {path}: {error.strerror}") from None
    raw = _read_toml(path, data) if path.endswith(".toml") else _read_yaml(path, data)
    if raw is None:
        return {}
    if not isinstance(raw, dict):
        raise ConfigError(f"--config-file {path}: must be a mapping of keys to values")
    values: dict[str, Any] = {}
    for key, value in raw.items():
        inner = value if key in SECTIONS and isinstance(value, dict) else {}
        found = {section_flag(str(key), str(k)): v for k, v in inner.items()}
        if key not in SECTIONS:
            found = {present_name(str(key)): value}
        for name, one in found.items():
            if name not in OPTIONS and not is_foreign(name):
                raise ConfigError(f'--config-file {path}: unknown key "{key}"{suggest(name)}')
            if one is not None and one != "":
                values[name] = one
    return values


def _read_yaml(path: str, data: bytes) -> Any:
    import yaml

    try:
        return yaml.safe_load(data)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or "is not YAML"
        raise ConfigError(f"--config-file {path}{where}: {what}") from None


def _read_toml(path: str, data: bytes) -> Any:
    import tomllib

    try:
        return tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config-file {path}: {error}") from None


# --- for a reader ---------------------------------------------------------------------------------


def write_value(value: Any, name: str) -> str:
    """A value as one would write it after the flag."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, float):
        return f"{value:g}s" if value else "0"
    return str(value)


def flags_help(width: int = 78) -> str:
    """All options with defaults, by group."""
    import textwrap

    lines: list[str] = []
    group = ""
    for name, option in OPTIONS.items():
        if option.group != group:
            group = option.group
            lines += ["", f"{group}:"]
        default = write_value(_default(name), name)
        lines.append(f"  --{name}" + (f" '{default}'" if default else ""))
        unit = f" In {option.unit}." if option.unit else ""
        no_effect = "" if option.acts else " No effect in this version."
        lines += textwrap.wrap(
            option.help + unit + no_effect, width, initial_indent="      ",
            subsequent_indent="      ",
        )  # fmt: skip
    lines += ["", f"  --{CONFIG_FILE}", "      YAML (etcd's keys) or TOML; flags, variables win."]
    return "\n".join(lines).lstrip("\n")
