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
_SIZES = ("keep", "ratio", "budget")
_SECTIONS = frozenset(name for method in METHODS.values() for name in sections_of(method.recipe))


def recipe_of(flags: Mapping[str, Any], file: Path | None = None) -> CompressRecipe:
    """Take the file's entries, overridden by the flags that were given (not None).

    :param flags: flag, without dashes -> value
    :raises PruneError: naming the entry that is missing, unknown, of another method or wrong
    """
    return _merged(_given(flags), file)[0]


def read_recipe(
    flags: Mapping[str, Any], file: Path | None = None
) -> tuple[CompressRecipe, tuple[str, ...]]:
    """Return the recipe as `recipe_of`, and what to tell the user about the file.

    A file may have settings that change nothing, as it may be for several uses.

    :raises PruneError: also for a flag that changes nothing
    """
    given = _given(flags)
    recipe, notes = _merged(given, file)
    for name, what in recipe.idle.items():
        if name in given:
            flag = _typed(name, given[name])
            raise PruneError(f"{flag} changes nothing here", hint=f"it goes with {what}")
        notes += (f"recipe {file}: {name} changes nothing, it goes with {what}",)
    return recipe, notes


def _typed(name: str, value: object) -> str:
    """Return a flag as a user types it."""
    word = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{word}" if value else f"--no-{word}"
    return f"--{word} {value}"


def _given(flags: Mapping[str, Any]) -> Flat:
    return {name: value for name, value in flags.items() if value is not None}


def _merged(given: Flat, file: Path | None) -> tuple[CompressRecipe, tuple[str, ...]]:
    if file is None:
        return _validated(given, "settings"), ()
    from offline.data.yaml_file import read_yaml

    source, notes = f"recipe {file}", tuple[str, ...]()
    entries = read_yaml(file, "recipe")
    if any(isinstance(entry, dict) for entry in entries.values()):
        found = _flat(entries, given.get("method"), source)
    else:
        found, notes = _without_sections(entries, given.get("method"), source)
    if given.keys() & set(_SIZES):  # one of them is given, and takes the place of the file's
        found = {name: value for name, value in found.items() if name not in _SIZES}
    return _validated(found | given, source), notes


def without_sections(
    entries: Mapping[str, Any], source: str = "settings"
) -> tuple[Flat, tuple[str, ...]]:
    """Return settings of version 0.1, and the names of those that their method does not have.

    :raises PruneError: if there is no such method
    """
    fields = fields_of(METHODS[_known_method(entries.get("method"), source)].recipe)
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


def _without_sections(
    entries: Flat, method: str | None, source: str
) -> tuple[Flat, tuple[str, ...]]:
    """Return a file's entries as `without_sections`, and notes of it.

    :param method: that takes the place of the file's
    """
    kept, foreign = without_sections(entries | ({"method": method} if method else {}), source)
    notes = [f"{source} has no sections: it is read as version 0.1 wrote it (docs/recipe.md)"]
    notes += [f"{source}: {name} is {_owner(name)}'s and is left out" for name in foreign]
    return kept, tuple(notes)


def _flat(entries: Mapping[str, Any], method: str | None, source: str) -> Flat:
    """Return a file's entries without their sections.

    :param method: that takes the place of the file's
    :raises PruneError: naming the section that is unknown or no table, or the misplaced entry
    """
    sections = {name: {} if entry is None else entry for name, entry in entries.items()}
    for short in ("method", "engine"):  # `method: eep` for `method: {name: eep}`
        if isinstance(sections.get(short), str):
            sections[short] = {"name": sections[short]}
    for name, section in sections.items():
        if name in _SECTIONS and not isinstance(section, dict):
            raise PruneError(f"{source}: section {name} is not a table of settings")
    method = _known_method(method or sections.get("method", {}).get("name"), source)
    recipe = METHODS[method].recipe
    places = {field: ".".join(place) for field, place in fields_of(recipe).items()}
    flat: Flat = {}
    for name, section in sections.items():
        if name not in _SECTIONS:
            hint = f"it is {places[name]}" if name in places else f"one of {_listed(recipe)}"
            raise PruneError(f"{source}: there is no section {name!r}", hint=hint)
        if name not in recipe.model_fields:
            raise PruneError(f"{source}: section {name} is not {method}'s", hint="leave it out")
        known = sections_of(recipe)[name].model_fields
        for field, value in section.items():
            if field not in known:
                raise _misplaced(str(field), name, method, places, source)
            if value is not None:
                flat[name if field == "name" else field] = value
    return flat | {"method": method}


def _misplaced(
    field: str, section: str, method: str, places: Mapping[str, str], source: str
) -> PruneError:
    """Return what to say of a field that its section does not have."""
    here = f"{source}: {section}.{field}"
    if field in places:
        return PruneError(f"{here}: there is no such setting", hint=f"it is {places[field]}")
    if (owner := _owner(field)) is not None:
        return PruneError(f"{here} is {owner}'s; this is {method}")
    known = sections_of(METHODS[method].recipe)[section].model_fields
    return PruneError(f"{here}: there is no such setting", hint=f"{section} has {', '.join(known)}")


def _known_method(name: Any, source: str) -> str:
    """Return a method's name, the default's for None.

    :raises PruneError: if there is no such method
    """
    if name is None:
        return DEFAULT_METHOD
    if not isinstance(name, str) or name not in METHODS:
        raise PruneError(f"{source}: method {name!r} is none of {', '.join(METHODS)}")
    return name


def _validated(entries: Flat, source: str) -> CompressRecipe:
    method = _known_method(entries.get("method"), source)
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
    if len(owners) < 2:
        return owners[0] if owners else None
    return f"{', '.join(owners[:-1])} and {owners[-1]}"


def _listed(recipe: type[CompressRecipe]) -> str:
    return ", ".join(sections_of(recipe))
