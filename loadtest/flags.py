"""What the locustfile adds to locust's own flags, and how they become an endpoint and a load."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from locust.argument_parser import LocustArgumentParser

from loadtest.endpoint import KEY_VARIABLE, Endpoint, key_from
from loadtest.load import Load, steady
from loadtest.metrics import Slo
from loadtest.records import PARQUET, need_parquet
from loadtest.workload import DEFAULT_WORKLOAD, Workload
from loadtest.workload_file import read_workload
from vllm_moe_prune.errors import PruneError

_OPEN_USERS = 256  # at most so many requests of an open loop are under way in all


def add_flags(parser: LocustArgumentParser) -> None:
    """Declare them."""
    flag = parser.add_argument_group("language model").add_argument
    flag("--workload", default=str(DEFAULT_WORKLOAD), help="prompts: JSONL, or YAML with a load")
    flag("--workload-seed", type=int, default=0, help="order of prompts, lengths, sampling")
    flag("--model", default="", help="model name; default: the first that the endpoint names")
    flag("--max-tokens", type=int, default=None, help="upper bound of every answer's length")
    flag("--temperature", type=float, default=0.0)
    flag("--ignore-eos", action="store_true", help="vLLM only: every answer has max_tokens")
    flag(
        "--continuous-usage",
        default="auto",
        help="on, off or auto: ask for the count of tokens in every chunk (auto: of vLLM)",
    )
    flag("--chat-weight", type=int, default=1, help="share of ChatUser among the users")
    flag("--completion-weight", type=int, default=0, help="share of CompletionUser")
    flag("--requests", type=int, default=0, help="end when N requests are answered")
    flag("--drain", action="store_true", help="at the end, wait for answers that are under way")
    flag("--rate", type=float, default=0.0, help="open loop: requests per second")
    flag("--arrivals", default="poisson", help="of an open loop: poisson or constant")
    flag("--request-timeout", type=float, default=600.0, help="seconds that a request may take")
    flag("--records", default="", help="JSONL or .parquet, a record per request")
    flag("--insecure", action="store_true", help="https: trust any certificate")
    flag("--ca", default="", help="https: file of certificates to trust")
    flag("--api-key-env", default=KEY_VARIABLE, help="environment variable that holds the key")
    flag("--slo-ttft-ms", type=float, default=0.0, help="exit 1 if p95 of ttft is above it")
    flag("--slo-tpot-ms", type=float, default=0.0, help="exit 1 if p95 of tpot is above it")
    flag("--slo-itl-ms", type=float, default=0.0, help="exit 1 if p95 of itl is above it")
    flag("--slo-e2e-ms", type=float, default=0.0, help="exit 1 if p95 of e2e is above it")
    flag(
        "--client-lag-ms",
        type=float,
        default=20.0,
        help="exit 1 if this client itself was later than that (p95); 0: do not judge it",
    )


def endpoint_of(options: argparse.Namespace, host: str | None) -> Endpoint:
    """The endpoint that is asked.

    :raises PruneError: if there is no address, or a wrong one
    """
    if not host:
        raise PruneError("no server to load", hint="give --host http://HOST:PORT")
    key = key_from(options.api_key_env)
    return Endpoint.of(host, key, insecure=options.insecure, ca=options.ca or None)


def workload_of(options: argparse.Namespace) -> Workload:
    """The workload that is named."""
    return read_workload(Path(options.workload))


def slo_of(options: argparse.Namespace, workload: Workload) -> Slo:
    """The bounds that make a request good: the flags', else the workload's."""
    given = {name: getattr(options, f"slo_{name}") or None for name in Slo.model_fields}
    return Slo.model_validate(
        {**workload.slo.model_dump(), **{k: v for k, v in given.items() if v}}
    )


def load_of(options: argparse.Namespace, workload: Workload) -> Load:
    """How the load runs: the flags', else the workload's.

    :raises PruneError: if the flags do not go together
    """
    if not options.rate:
        return workload.load
    if options.arrivals not in {"poisson", "constant"}:
        raise PruneError("--arrivals is poisson or constant")
    if not 0 < options.rate < math.inf:
        raise PruneError("--rate must be above 0")
    seconds = getattr(options, "open_seconds", None) or options.run_time
    if not seconds and not options.requests:
        raise PruneError("an open loop needs an end", hint="give --run-time or --requests")
    # Not infinity: the options travel to other processes as they are.
    return steady(options.rate, float(seconds or 1e9), options.arrivals)


def check(options: argparse.Namespace, workload: Workload) -> Load:
    """Refuse what cannot be, and set what follows from the load.

    :raises PruneError: one line that names the flag
    """
    if options.continuous_usage not in {"auto", "on", "off"}:
        raise PruneError("--continuous-usage is on, off or auto")
    if not 0 < options.request_timeout < math.inf:
        raise PruneError("--request-timeout must be above 0, and end")
    if options.records.endswith(PARQUET):
        need_parquet()
    load = load_of(options, workload)
    if options.num_users is None and workload.users is not None:
        options.num_users = workload.users
    if load.open:
        # The end is that of the arrivals: answers that are under way are waited for.
        options.open_seconds, options.run_time = options.run_time, None
        options.num_users = options.num_users or _OPEN_USERS
        options.spawn_rate = options.spawn_rate or float(options.num_users)
    return load
