"""`vmprune inspect`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from offline.cli.findings import findings, of_tensors
from offline.cli.models import model_folder
from offline.lint.counts import spans
from offline.lint.lint import Finding, Target
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.routing_map import MAP_FILE, RoutingMap


@click.command(epilog="Example: vmprune inspect pruned --json")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--serve-tp", type=click.IntRange(1), help="tensor-parallel ranks to lint for")
@click.option("--serve-ep", type=click.IntRange(1), help="expert-parallel ranks to lint for")
@click.option("--explain", is_flag=True, help="say of every tensor what it is taken for")
@click.option("--json", "as_json", is_flag=True, help="print JSON on stdout")
def inspect(
    path: Path, serve_tp: int | None, serve_ep: int | None, explain: bool, as_json: bool
) -> None:
    """Describe a base checkpoint, a pruned checkpoint or a routing map.

    PATH is one of these here, or Org/Name[@revision] on the Hugging Face hub, of which headers are
    read over the network and no weights are downloaded.

    Of a map and of what was built from one it says what those who serve it will meet
    (docs/serving.md).

    With --explain it tells what the tensors of a checkpoint look like, also of a family that is not
    supported (docs/families.md).
    """
    from offline.data.models import FACTS

    folder = model_folder(path, FACTS)
    if explain:
        _explain(path, folder, as_json=as_json)
        return
    facts = describe(folder) | {"path": str(path)}
    if "map" not in facts and (serve_tp or serve_ep):
        raise PruneError(f"{path} is a base: --serve-tp and --serve-ep are about routing maps")
    found = findings(folder, Target(serve_tp, serve_ep))
    if "map" in facts:
        facts["lint"] = [*facts.get("lint", ()), *(asdict(finding) for finding in found)]
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        _show(facts)
        for told in facts.get("lint", ()):
            click.echo(str(Finding(**told)))


def _explain(path: Path, folder: Path, *, as_json: bool) -> None:
    """Print what the tensors look like, and what the family's layout takes them for."""
    from rich.table import Table

    from offline.cli.console import stdout
    from offline.lint.explain import experts_per_layer, groups_of, proposed, recognised
    from vllm_moe_prune.checkpoint import read_config, stored_tensors
    from vllm_moe_prune.layouts import LAYOUTS, layout_of

    config, stored = read_config(folder), stored_tensors(folder)
    known = str(config.get("model_type")) in LAYOUTS
    layout = None
    if known:
        try:
            layout = layout_of(config).settled(stored)
        except PruneError as error:  # which is what there is to be explained
            click.echo(f"note: {error}", err=True)
    groups = groups_of({name: one.info for name, one in stored.items()}, layout)
    counts, form = experts_per_layer(groups.values()), proposed(groups.values())
    lines = recognised(groups.values(), config)
    if as_json:
        tensors = [asdict(one) | {"layers": sorted(one.layers)} for one in groups.values()]
        tensors = [one | {"experts": len(one["experts"])} for one in tensors]
        facts = {"path": str(path), "experts_per_layer": counts, "tensors": tensors, "form": form}
        more = {"recognised": lines, "model_type": config.get("model_type")}
        click.echo(json.dumps(facts | more, indent=2))
        return
    table = Table("tensors", "dtype", "shape", "layers", "looks like")
    if layout is not None:
        table.add_column("is taken for")
    for one in groups.values():
        taken = "unknown" if one.role is None else one.role or "left as it is"
        where = spans(one.layers).partition(" ")[2] if one.layers else ""
        row = (one.pattern, one.dtype, str(list(one.shape)), where, one.guess)
        table.add_row(*row, *([taken] if layout is not None else []))
    console = stdout()
    told = "supported" if known else "not supported"
    console.print(f"{path}: model type {config.get('model_type')!r}, {told}", soft_wrap=True)
    console.print(table)
    for count in sorted(set(counts.values())):
        layers = [layer for layer, found in counts.items() if found == count]
        console.print(f"{count} experts in {spans(layers)}", soft_wrap=True)
    unknown = [one.pattern for one in groups.values() if one.role is None]
    if layout is not None and unknown:
        lines.append(f"not known for {layout.model_type}: {', '.join(unknown)}")
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)
    if layout is None and form is not None:
        console.print(f"an entry for it would begin with (docs/families.md):\n{form}", markup=False)


def describe(path: Path) -> dict[str, Any]:
    """Return what is known of a path: kind, sizes, per-layer counts, the map and its provenance.

    :raises PruneError: if it is neither a checkpoint nor a map
    """
    facts: dict[str, Any] = {"path": str(path), "kind": "base checkpoint"}
    is_map_file = path.is_file()
    if is_map_file or (path / MAP_FILE).exists():
        facts |= _map_facts(RoutingMap.load(path))
        facts["kind"] = "routing map"
    elif not path.is_dir():
        raise PruneError(f"{path} is neither a checkpoint folder nor a routing map")
    if not is_map_file and (path / "config.json").exists():
        facts |= _checkpoint_facts(path)
        if "map" in facts:
            facts["kind"] = f"pruned checkpoint ({facts['map']['form']})"
    elif "map" not in facts:
        raise PruneError(f"{path} has neither config.json nor {MAP_FILE}")
    return facts


def _checkpoint_facts(path: Path) -> dict[str, Any]:
    from offline.build.mtp import DraftLayers
    from vllm_moe_prune.checkpoint import Checkpoint
    from vllm_moe_prune.draft_config import own_counts

    checkpoint = Checkpoint.open(path)
    drafts = DraftLayers.of(checkpoint)
    more = {}
    if drafts.layers or drafts.promised:
        counts = own_counts(checkpoint.config, checkpoint.layout)
        more["drafts"] = asdict(drafts) | {"own_counts": counts, "missing": drafts.missing()}
    return {
        "model_type": checkpoint.layout.model_type,
        "num_bytes": checkpoint.num_bytes,
        "expert_bytes": checkpoint.expert_bytes(),
        "experts_per_layer": checkpoint.expert_counts(),
        "top_k": checkpoint.layout.top_k(checkpoint.config),
        "fingerprint": checkpoint.fingerprint().model_dump(),
        **more,
        "incomplete": checkpoint.missing_tensors(),
        "lint": [asdict(finding) for finding in of_tensors(checkpoint)],
    }


def _map_facts(routing_map: RoutingMap) -> dict[str, Any]:
    fields = routing_map.model_dump(mode="json", exclude_none=True)
    return {
        "model_type": routing_map.model_type,
        "map": {
            "form": routing_map.form,
            "summary": routing_map.summary(),
            "digest": routing_map.digest(),
            "layers": fields["layers"],
            "tuned": fields["tuned"],
        },
        "provenance": fields["provenance"],
    }


def _drafts(drafts: dict[str, Any]) -> str:
    """Say what there is of draft layers."""
    lines = []
    if numbers := drafts["layers"]:
        experts = sorted(set(drafts["experts"].values()))
        of = f", {'/'.join(map(str, experts))} experts each" if experts else ", without experts"
        active = f", top-{drafts['own_counts'][1]}" if drafts["own_counts"] else ""
        lines.append(f"MTP (draft) layers: {', '.join(map(str, numbers))}{of}{active}")
    if drafts["missing"]:
        lines.append(drafts["missing"])
    return "\n".join(lines)


def _show(facts: dict[str, Any]) -> None:
    from rich.table import Table

    from offline.cli.console import stdout
    from offline.runs.units import gib

    console = stdout()
    console.print(f"{facts['path']}: {facts['kind']} of {facts['model_type']}", soft_wrap=True)
    if "num_bytes" in facts:
        console.print(f"{gib(facts['num_bytes'])}, of that experts {gib(facts['expert_bytes'])}")
    if "drafts" in facts:
        console.print(_drafts(facts["drafts"]), soft_wrap=True)
    table = Table("layer", "experts", "top-k", "router", "kept")
    if "map" in facts:
        console.print(facts["map"]["summary"], soft_wrap=True)
        for layer in facts["map"]["layers"]:
            kept = layer["experts"].get("kept") or f"merged by {layer['experts']['matrix']}"
            if "substituted" in layer:
                kept = f"{kept}, constant: {layer['substituted']['experts']}"
            count = f"{layer['num_kept']} of {layer['num_experts']}"
            row = (layer["layer"], count, layer["top_k"], layer["router"], kept)
            table.add_row(*map(str, row))
        for tuning in facts["map"]["tuned"]:
            text = f"weights tuned: {tuning['trainable']}, {tuning['steps']} steps, "
            console.print(f"{text}{tuning['tokens']:,} tokens", soft_wrap=True)
        made = facts["provenance"]
        seed = f", seed {made['seed']}" if "seed" in made else ""
        console.print(f"made by {made['method']}{seed}, {made['tool']}")
    else:
        for layer, count in facts["experts_per_layer"].items():
            table.add_row(str(layer), str(count), str(facts["top_k"]), "", "all")
    console.print(table)
