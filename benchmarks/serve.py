"""The server under load: many requests at 16 streams against the same requests one at a time, on the same running server.

    python benchmarks/serve.py [--json] [--requests 1000] [--streams 16] [--new-tokens 24] [--rounds 4]

A server is started as a process of its own (`palimpsest serve`), and asked over HTTP with streams. The requests are cut into rounds; in
every round the two arms answer the same prompts, in an order that changes from round to round, so that what else the machine does meets
both. The prompts are all different and greedy, so the text that one gets alone is what it must get among others:

* `lost`: requests without a whole answer;
* `changed`: answers that are not the lone text;
* `tied`: those of them that leave it where the two likeliest tokens are within 0.001 nats of each other. A batch adds in another order
  than a single row, so there the other token can win, and both texts are right;
* `mixed`: those of the others that begin with eight pieces of another prompt's text. Neither mixed nor untied ones should be.

Each arm has an API key of its own, so neither finds the other's prompts in the prefix cache. The ratio is that of tokens a second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from palimpsest.measurement import environment

TIE = 0.001  # nats
ALONE, TOGETHER = "the-key-of-the-lone-ones", "the-key-of-the-crowd-000"
WORDS = (
    "river mountain engine harbour teacher village winter letter garden window market doctor bridge island paper captain forest "
    "station morning kitchen library soldier machine painter valley church journey basket hammer candle"
)
FORMS = (
    "The {} stood behind the {} and the {}, and when the",
    "Nobody in the {} knew why the {} had left the {} before",
    "A short history of the {}, the {} and the {}. Chapter one:",
    "To reach the {} from the {}, walk past the {} and then",
    "The {} is to the {} what the {} is to the",
)


@dataclass
class Answer:
    """What came back: the text in pieces, and when the first and the last of them came, in seconds."""

    pieces: list[str]
    first: float
    last: float
    tokens: int

    @property
    def text(self) -> str:
        return "".join(self.pieces)


def make_prompts(count: int) -> list[str]:
    """Prompts, no two alike."""
    draw, words, made = random.Random(0), WORDS.split(), dict[str, None]()
    while len(made) < count:
        made[draw.choice(FORMS).format(*draw.sample(words, 3))] = None
    return list(made)


@contextmanager
def server(model: str, streams: int) -> Iterator[str]:
    """The address of a server of its own, which must end well."""
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys"
        keys.write_text(f"{ALONE}\n{TOGETHER}\n")
        options = ["--port", "0", "--name", "model", "--api-key-file", str(keys), "--max-streams", str(streams), "--quiet", "--json"]
        process = subprocess.Popen([sys.executable, "-m", "palimpsest", "serve", model, *options], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            started = process.stdout.readline()
            if not started:
                raise SystemExit("The server did not start.")
            yield json.loads(started)["url"]
        finally:
            process.send_signal(signal.SIGTERM)
            if process.wait(60):
                raise SystemExit(f"The server ended with {process.returncode}.")


async def ask(client: httpx.AsyncClient, key: str, prompt: str, tokens: int) -> Answer | None:
    """One streamed completion; None when it did not come whole."""
    body = {"model": "model", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}
    body["stream_options"] = {"include_usage": True}
    began, first, pieces, used = time.perf_counter(), 0.0, [], 0
    async with client.stream("POST", "/completions", json=body, headers={"Authorization": f"Bearer {key}"}) as answer:
        if answer.status_code != 200:
            return None
        async for line in answer.aiter_lines():
            if line == "data: [DONE]":
                return Answer(pieces, first, time.perf_counter() - began, used)
            if line.startswith("data: "):
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    return None
                used = chunk["usage"]["completion_tokens"] if chunk["usage"] else used
                if chunk["choices"] and chunk["choices"][0]["text"]:
                    first = first or time.perf_counter() - began
                    pieces.append(chunk["choices"][0]["text"])
    return None


async def run_arm(url: str, key: str, prompts: Sequence[str], tokens: int, streams: int) -> tuple[list[Answer | None], float]:
    """The answers in the order of the prompts, at most `streams` asked at once, and the seconds that all took."""
    limits = httpx.Limits(max_connections=streams)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:
        gate = asyncio.Semaphore(streams)

        async def one(prompt: str) -> Answer | None:
            async with gate:
                try:
                    return await ask(client, key, prompt, tokens)
                except httpx.HTTPError:
                    return None

        began = time.perf_counter()
        answers = await asyncio.gather(*map(one, prompts))
        return list(answers), time.perf_counter() - began


async def compare(
    url: str, prompts: Sequence[str], alone: Sequence[Answer | None], together: Sequence[Answer | None], tokens: int
) -> dict[str, int]:
    """How many answers of the crowd are lost or changed, and what of that the model's own ties explain."""
    heads = {"".join(answer.pieces[:8]): number for number, answer in enumerate(alone) if answer is not None}
    counts = {"lost": 0, "lost_alone": sum(answer is None for answer in alone), "changed": 0, "tied": 0, "mixed": 0}
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        for prompt, own, answer in zip(prompts, alone, together, strict=True):
            if answer is None:
                counts["lost"] += 1
            elif own is not None and answer.text != own.text:
                counts["changed"] += 1
                if await gap(client, prompt, answer.text, tokens) < TIE:
                    counts["tied"] += 1
                elif "".join(answer.pieces[:8]) != "".join(own.pieces[:8]) and "".join(answer.pieces[:8]) in heads:
                    counts["mixed"] += 1
    return counts


async def gap(client: httpx.AsyncClient, prompt: str, text: str, tokens: int) -> float:
    """By how many nats the likeliest token leads the second where a text leaves the lone one."""
    body = {"model": "model", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "logprobs": 2}
    answer = (await client.post("/completions", json=body, headers={"Authorization": f"Bearer {ALONE}"})).json()
    [choice], common = answer["choices"], 0
    while common < min(len(text), len(choice["text"])) and text[common] == choice["text"][common]:
        common += 1
    offsets = choice["logprobs"]["text_offset"]
    leaves = max((place for place, offset in enumerate(offsets) if offset <= common), default=0)
    first, second = sorted(choice["logprobs"]["top_logprobs"][leaves].values(), reverse=True)[:2]
    return first - second


def summarise(answers: Sequence[Answer | None], seconds: float) -> dict[str, float]:
    """Throughput and waiting times of an arm."""
    whole = [answer for answer in answers if answer is not None]
    firsts, lasts = sorted(answer.first for answer in whole), sorted(answer.last for answer in whole)
    tokens = sum(answer.tokens for answer in whole)
    return {
        "requests": len(answers),
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "first_token_median": statistics.median(firsts),
        "first_token_95": firsts[int(0.95 * (len(firsts) - 1))],
        "answer_median": statistics.median(lasts),
        "answer_95": lasts[int(0.95 * (len(lasts) - 1))],
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the benchmark and prints it."""
    parser = argparse.ArgumentParser(description="The server at many streams against one at a time.")
    parser.add_argument("--model", default="smollm2-135m", help="a name or folder for palimpsest serve")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)

    prompts = make_prompts(options.requests)
    arms: dict[str, list[Answer | None]] = {"alone": [], "together": []}
    seconds = dict.fromkeys(arms, 0.0)
    ratios = []
    with server(options.model, options.streams) as url:
        for key, streams in ((ALONE, 1), (TOGETHER, options.streams)):  # warms up, and is not counted
            asyncio.run(run_arm(url, key, ["A word to begin with"] * streams, 4, streams))
        for number in range(options.rounds):
            part = prompts[number * len(prompts) // options.rounds : (number + 1) * len(prompts) // options.rounds]
            rates = {}
            for arm in sorted(arms, reverse=bool(number % 2)):
                key, streams = (ALONE, 1) if arm == "alone" else (TOGETHER, options.streams)
                answers, took = asyncio.run(run_arm(url, key, part, options.new_tokens, streams))
                arms[arm] += answers
                seconds[arm] += took
                rates[arm] = sum(answer.tokens for answer in answers if answer) / took
            ratios.append(rates["together"] / rates["alone"])
        compared = asyncio.run(compare(url, prompts, arms["alone"], arms["together"], options.new_tokens))
    result = {
        "model": options.model,
        "streams": options.streams,
        "new_tokens": options.new_tokens,
        "arms": {arm: summarise(answers, seconds[arm]) for arm, answers in arms.items()},
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        **compared,
        "distinct": len({answer.text for answer in arms["alone"] if answer}),
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "environment": environment(),
    }
    if options.json:
        json.dump(result, sys.stdout, indent=1)
        print()
        return result
    print(f"{options.model}, {options.requests} prompts, {options.new_tokens} tokens each, {options.streams} streams")
    print(f"{'':10}{'requests':>9}{'seconds':>9}{'tokens/s':>10}{'first token (95 %)':>22}{'answer (95 %)':>20}")
    for arm, row in result["arms"].items():
        first = f"{row['first_token_median']:.2f} ({row['first_token_95']:.2f}) s"
        last = f"{row['answer_median']:.2f} ({row['answer_95']:.2f}) s"
        print(f"{arm:10}{row['requests']:9}{row['seconds']:9.1f}{row['tokens_per_second']:10.1f}{first:>22}{last:>20}")
    print(f"ratio of tokens a second, median of the rounds: {result['ratio']:.2f} ({', '.join(f'{ratio:.2f}' for ratio in ratios)})")
    print(f"lost {result['lost']}, changed {result['changed']} ({result['tied']} of them at a tie), mixed {result['mixed']}")
    print(f"{result['distinct']} of the lone texts are distinct.")
    return result


if __name__ == "__main__":
    main()
