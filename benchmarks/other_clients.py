"""Other load generators against the scripted server: `vllm bench serve` and GuideLLM.

Each returns the percentiles that it found, by the names of our own: time to first token, time per
output token, gaps and end to end, in milliseconds.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.dummy_model import write_tokenizer
from loadtest.endpoint import Endpoint
from loadtest.workload import Lengths, load_workload
from serve.process import python_module

METRICS = ("ttft", "tpot", "itl", "e2e")
PERCENTS = (50, 95)
_ROOT = Path(__file__).parents[1]
_VLLM_NAMES = {"ttft": "ttft", "tpot": "tpot", "itl": "itl", "e2e": "e2el"}
# What it calls inter-token latency is a request's mean, and its time per output token counts the
# first one in; it has no gaps.
_GUIDELLM_NAMES = {
    "ttft": ("time_to_first_token_ms", 1.0),
    "tpot": ("inter_token_latency_ms", 1.0),
    "e2e": ("request_latency", 1000.0),
}

Cells = dict[str, float]


def vllm_bench(
    endpoint: Endpoint, users: int, requests: int, lengths: Lengths, folder: Path
) -> Cells:
    """The same load by `vllm bench serve`; its lengths are uniform where ours are drawn."""
    write_tokenizer(folder, 32000)
    mean = lengths.median
    spread = 0.0 if lengths.distribution == "constant" else 0.6
    words: Sequence[object] = [
        *("bench", "serve", "--backend", "openai-chat", "--base-url", endpoint.url),
        *("--endpoint", "/v1/chat/completions", "--model", "plain", "--tokenizer", folder),
        *("--dataset-name", "random", "--random-input-len", 20, "--random-output-len", mean),
        *("--random-range-ratio", json.dumps({"input": 0.0, "output": spread})),
        *("--num-prompts", requests, "--ignore-eos"),
        *("--max-concurrency", users, "--num-warmups", min(users, 4), "--percentile-metrics"),
        *("ttft,tpot,itl,e2el", "--metric-percentiles", "50,95", "--save-result"),
        *("--result-dir", folder, "--result-filename", "result.json", "--disable-tqdm"),
    ]
    subprocess.run(
        [*python_module("serve.launch"), *map(str, words)],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(_ROOT), "HF_HUB_OFFLINE": "1"},
    )
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return {
        f"{name} p{percent}": found[f"p{percent}_{_VLLM_NAMES[name]}_ms"]
        for name in METRICS
        for percent in PERCENTS
    }


def guidellm(
    program: Path, endpoint: Endpoint, users: int, requests: int, work: Path, folder: Path
) -> Cells:
    """The same requests by GuideLLM 0.8, of whose own percentiles those of ours are computed.

    :param program: its command, of an environment of its own
    :param work: the workload
    """
    data, result = folder / "guidellm.jsonl", folder / "guidellm.json"
    asks = islice(load_workload(work).requests(0), requests)
    rows = ({"prompt": item.text, "output_tokens_count": tokens} for item, tokens in asks)
    data.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    server = f"kind=openai_http,target={endpoint.url},model=plain"
    words = [
        *("run", "--disable-console", "--data", f"kind=json_file,path={data}"),
        *("--backend", f"{server},http2=false,validate_backend=false"),
        *("--profile", f"kind=concurrent,streams={users}"),
        *("--constraint", f"kind=max_requests,count={requests}"),
        *("--output", f"kind=json,path={result}"),
    ]
    subprocess.run(
        [str(program.absolute()), *words],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), "HF_HUB_OFFLINE": "1"},
    )
    (benchmark,) = json.loads(result.read_text())["benchmarks"]
    rows_found = benchmark["requests"]["successful"]
    return {
        f"{name} p{percent}": unit * float(np.percentile([row[key] for row in rows_found], percent))
        for name, (key, unit) in _GUIDELLM_NAMES.items()
        for percent in PERCENTS
    }
