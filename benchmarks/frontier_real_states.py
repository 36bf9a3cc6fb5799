"""Final hidden states of a real model over a mixture of texts and over other domains, stored in memory-mapped files.

A quarter of the text learnt from is written by the model itself. `learn`, `valid` and the three tests of the mixture
come from different documents; the other domains are used for tests only. A killed run resumes.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from codehead.training.loop import Stages, Work
from codehead.training.model import load_model
from codehead.training.new_head import write_texts
from codehead.training.tokenizer import load_tokenizer, start_of_text

BLOCK, BATCH = 256, 4
MIXTURE = {"dolly": 0.4, "books": 0.3, "wikitext": 0.3}
OTHERS = ("alpaca", "stories", "german", "python")
TEST_BLOCKS = 20
SEED = 0


def documents(name: str, data: Path) -> list[str]:
    """All documents of a source, shuffled."""
    found = list(globals()[f"_{name}"](data))
    random.Random(SEED).shuffle(found)
    return found


def _dolly(data: Path) -> Iterator[str]:
    for name in ("train", "dev"):
        for line in (data / f"dolly/{name}.jsonl").read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            yield "\n".join(record[key] for key in ("instruction", "context", "response") if record.get(key))


def _books(data: Path) -> Iterator[str]:
    for path in sorted((data / "books").glob("*.txt")):
        text = path.read_text(encoding="utf-8")
        yield from (text[start : start + 4000] for start in range(0, len(text), 4000))


def _wikitext(data: Path) -> Iterator[str]:
    article: list[str] = []
    for line in (data / "wikitext2/valid.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith(" = ") and not line.startswith(" = =") and article:
            yield "\n".join(article)
            article = []
        article.append(line)
    yield "\n".join(article)


def _alpaca(data: Path) -> Iterator[str]:
    for record in json.loads((data / "alpaca/alpaca.json").read_text(encoding="utf-8")):
        yield record["output"]


def _stories(data: Path) -> Iterator[str]:
    for line in (data / "tinystories/stories.jsonl").read_text(encoding="utf-8").splitlines():
        yield json.loads(line)["text"]


def _german(data: Path) -> Iterator[str]:
    with gzip.open(data / "multi30k/train.de.gz", "rt", encoding="utf-8") as lines:
        sentences = [line.strip() for line in lines]
    yield from (" ".join(sentences[i : i + 10]) for i in range(0, len(sentences), 10))


def _python(data: Path) -> Iterator[str]:
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        yield path.read_text(encoding="utf-8", errors="ignore")[:8000]


def blocks(texts: list[str], tokenizer, count: int) -> np.ndarray:
    """The first `count` blocks `(count, BLOCK)` of documents in a row, each ended by the eos token.

    A tokenizer's bos token begins every block, not only every document: models such as Gemma depend on it.
    """
    start, ids = start_of_text(tokenizer), []
    size = BLOCK - len(start)
    for text in texts:
        ids += [*tokenizer(text).input_ids, tokenizer.eos_token_id]
        if len(ids) >= len(start) + count * size:
            found = np.array(ids[len(start) :][: count * size], dtype=np.int32).reshape(count, size)
            return np.insert(found, [0] * len(start), start, axis=1)
    raise SystemExit(f"only {len(ids) // size} blocks, not {count}")


def sets(data: Path, tokenizer, count: int, own: np.ndarray) -> dict[str, np.ndarray]:
    """Blocks of every set by its name; `learn` is the model's `own`, then `count` blocks of the mixture, shuffled."""
    learn, valid, tests = [], [], {}
    for name, share in MIXTURE.items():
        texts = documents(name, data)
        held, rest = texts[: len(texts) // 5], texts[len(texts) // 5 :]
        tests[name] = blocks(held[: len(held) * 2 // 3], tokenizer, TEST_BLOCKS)
        valid.append(blocks(held[len(held) * 2 // 3 :], tokenizer, round(share * TEST_BLOCKS)))
        learn.append(blocks(rest, tokenizer, round(share * count)))
    for name in OTHERS:
        tests[name] = blocks(documents(name, data), tokenizer, TEST_BLOCKS)
    mixed = np.concatenate(learn)
    mixed = mixed[np.random.default_rng(SEED).permutation(len(mixed))]
    return {"valid": np.concatenate(valid), **tests, "learn": np.concatenate([own, mixed])}


@torch.no_grad()
def compute(model, ids: np.ndarray, name: str, cache: Path, until: int) -> None:
    """The states of a set, up to block `until`, from where an earlier run stopped."""
    shape = (len(ids), BLOCK - 1, model.config.hidden_size)
    path, mark = cache / f"{name}.states.npy", cache / f"{name}.done"
    if not path.exists():
        np.save(cache / f"{name}.labels.npy", ids[:, 1:])
        np.lib.format.open_memmap(path, "w+", np.float16, shape).flush()
    done = int(mark.read_text()) if mark.exists() else 0
    kept = np.lib.format.open_memmap(path, "r+")
    for start in range(done, min(until, len(ids)), BATCH):
        some = torch.from_numpy(ids[start : start + BATCH]).long()
        kept[start : start + len(some)] = model.model(some, use_cache=False).last_hidden_state[:, :-1].half().numpy()
        kept.flush()
        mark.write_text(str(start + len(some)))
        print(name, start + len(some), len(ids), flush=True)


def main() -> None:
    """Parse the command line and compute the missing sets."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--positions", type=int, default=400_000)
    parser.add_argument("--own-text", type=float, default=0.25, help="share of the positions that the model writes")
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    model, tokenizer = load_model(options.model, dtype="float32").eval(), load_tokenizer(options.model)
    count = -(-options.positions // (BLOCK - 1))
    work = Work(lambda *told: print(*told, flush=True), Stages(options.cache))
    texts = write_texts(model, start_of_text(tokenizer), round(options.own_text * count), BLOCK, work=work)
    own = torch.cat([torch.empty(0, BLOCK, dtype=torch.long), *texts]).int().numpy()
    (options.cache / "written").write_text(str(len(own) * (BLOCK - 1)))
    found = sets(options.data, tokenizer, count - len(own), own)
    learn = found.pop("learn")
    half = load_model(options.model, dtype="bfloat16").eval()
    compute(half, learn, "learn", options.cache, 400)
    for name, ids in found.items():
        compute(model, ids, name, options.cache, len(ids))
    compute(half, learn, "learn", options.cache, len(learn))


if __name__ == "__main__":
    main()
