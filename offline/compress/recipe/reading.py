"""Recipes from flags and from files: which recipe is meant, and what is wrong with it.

A file has a section per concern:

    base: {model: base}
    method: {name: eep, keep: 4}
    data: {task: sciq}

Files of version 0.1 had the same settings without sections, those of all methods side by side.
They are still read, and what the method does not have is left out; ``notes`` tell of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import JsonValue, ValidationError

from offline.compress.methods import DEFAULT_METHOD, METHODS
from offline.compress.recipe.eep import EepRecipe
from offline.compress.recipe.recipe import CompressRecipe, fields_of, sections_of
from vllm_moe_prune.errors import PruneError

Flat = dict[str, Any]  # flag, without dashes -> value
_SECTIONS = frozenset(name for method in METHODS.values() for name in sections_of(method.recipe))


def recipe_of(flags: Mapping[str, Any], file: Path | None = None) -> CompressRecipe:
    """Take the file's entries, overridden by the flags that were given (not None).

    :param flags: flag, without dashes -> value
    :raises PruneError: naming the entry that is missing, unknown, of another method or wrong
    """
    return read_recipe(flags, file)[0]


def read_recipe(
    flags: Mapping[str, Any], file: Path | None = None
) -> tuple[CompressRecipe, tuple[str, ...]]:
    """Return the recipe as `recipe_of`, and what to tell the user about the file."""
    given = {name: value for name, value in flags.items() if value is not None}
    if file is None:
        return _validated(given, "settings"), ()
    source = f"recipe {file}"
    entries = _read_yaml(file)
    if not any(isinstance(entry, dict) for entry in entries.values()):
        return _read_without_sections(entries, given, file)
    return _validated(_flat(entries, source) | given, source), ()


def without_sections(entries: Mapping[str, Any]) -> tuple[Flat, tuple[str, ...]]:
    """Return settings of version 0.1, and the names of those that their method does not have."""
    method = str(entries.get("method", DEFAULT_METHOD))
    fields = fields_of(METHODS[method].recipe) if method in METHODS else {}
    foreign = {name for name in entries if name not in fields and _owner(name) is not None}
    kept = {k: v for k, v in entries.items() if k not in foreign and v is not None}
    return kept, tuple(sorted(name for name in foreign if entries[name] is not None))


def upgraded(settings: Mapping[str, Any]) -> dict[str, JsonValue]:
    """Return `CompressRecipe.settings` of what version 0.1 wrote down for a run.

    :raises PruneError: if they are no settings that it wrote
    """
    kept, _ = without_sections(settings)
    recipe = recipe_of({"model": Path(), **kept})
    found = recipe.settings()
    if isinstance(recipe, EepRecipe) and recipe.search.finalists is not None:
        preset = recipe.search.model_copy(update={"finalists": None}).settings(recipe.method, 1)
        if recipe.search.finalists == preset.finalists:  # which wrote down what was not given
            del found["finalists"]
    return found


def _read_without_sections(
    entries: Flat, given: Flat, file: Path
) -> tuple[CompressRecipe, tuple[str, ...]]:
    kept, foreign = without_sections(entries | {k: given[k] for k in ("method",) if k in given})
    notes = [f"recipe {file} has no sections: it is read as version 0.1 wrote it (docs/recipe.md)"]
    notes += [f"recipe {file}: {name} is {_owner(name)}'s and is left out" for name in foreign]
    return _validated(kept | given, f"recipe {file}"), tuple(notes)


def _flat(entries: Mapping[str, Any], source: str) -> Flat:
    """Return a file's entries without their sections.

    :raises PruneError: naming the section that is unknown or no table, or the misplaced entry
    """
    entries = {name: {} if entry is None else entry for name, entry in entries.items()}
    for short in ("method", "engine"):  # `method: eep` for `method: {name: eep}`
        if isinstance(entries.get(short), str):
            entries[short] = {"name": entries[short]}
    method = entries.get("method", {}).get("name", DEFAULT_METHOD)
    recipe = METHODS[method].recipe if method in METHODS else CompressRecipe
    flat: Flat = {}
    for name, section in entries.items():
        if name not in _SECTIONS:
            raise PruneError(
                f"{source}: there is no section {name!r}", hint=f"one of {_listed(recipe)}"
            )
        if name not in recipe.model_fields:
            raise PruneError(f"{source}: section {name} is not {method}'s")
        if not isinstance(section, dict):
            raise PruneError(f"{source}: section {name} is not a table of settings")
        known = sections_of(recipe)[name].model_fields
        for field, value in section.items():
            if field not in known:
                raise PruneError(
                    f"{source}: {name}.{field}: there is no such setting",
                    hint=f"{name} has {', '.join(known)}",
                )
            if value is not None:
                flat[name if field == "name" else field] = value
    return flat


def _validated(entries: Flat, source: str) -> CompressRecipe:
    method = str(entries.get("method", DEFAULT_METHOD))
    if method not in METHODS:
        raise PruneError(f"{source}: method {method!r} is none of {', '.join(METHODS)}")
    recipe = METHODS[method].recipe
    fields = fields_of(recipe)
    nested: dict[str, dict[str, Any]] = {name: {} for name in sections_of(recipe)}
    nested["method"]["name"] = method
    for name, value in entries.items():
        if name not in fields:
            raise PruneError(f"{source}: {_unknown(name, method)}")
        section, field = fields[name]
        nested[section][field] = value
    try:
        return recipe.model_validate(nested)
    except ValidationError as error:
        raise _refusal(error, source) from None


def _refusal(error: ValidationError, source: str) -> PruneError:
    """Return pydantic's first complaint as one line that names the flag."""
    first = error.errors()[0]
    text = first["msg"].removeprefix("Value error, ")
    place = [str(part) for part in first["loc"]]
    if len(place) < 2:  # a rule about several settings names them itself
        return PruneError(f"{source}: {text}")
    flag = place[0] if place[1] == "name" else place[1]
    hint = f"add --{flag.replace('_', '-')}" if first["type"] == "missing" else None
    return PruneError(f"{source}: {flag}: {text}", hint=hint)


def _unknown(name: str, method: str) -> str:
    owner = _owner(name)
    if owner is None:
        return f"{name}: there is no such setting"
    return f"--{name.replace('_', '-')} is {owner}'s; this is {method}"


def _owner(name: str) -> str | None:
    """Return the method, or the methods, that have a setting."""
    owners = [known for known, method in METHODS.items() if name in fields_of(method.recipe)]
    return " and ".join(owners) or None


def _listed(recipe: type[CompressRecipe]) -> str:
    return ", ".join(sections_of(recipe))


def _read_yaml(file: Path) -> dict[str, Any]:
    import yaml

    try:
        entries = yaml.safe_load(file.read_text())
    except FileNotFoundError:
        raise PruneError(f"no recipe file at {file}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise PruneError(f"recipe {file} is not YAML: {reason}") from None
    if not isinstance(entries, dict):
        raise PruneError(f"recipe {file} is not a table of settings")
    return {str(name): entry for name, entry in entries.items()}
