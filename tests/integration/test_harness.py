"""Tasks of lm-evaluation-harness: its numbers are those of the model's own logits, for coded and stock models."""

from __future__ import annotations

import json
import logging
import math
import os
import re
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import codehead
from codehead.errors import CodeheadError, ConfigurationError
from codehead.lab import harness
from codehead.lab.harness import find_names, harness_model, load_tasks, run_tasks
from codehead.lab.result import Result
from codehead.training.tokenizer import train_bpe

pytest.importorskip("lm_eval")

TEXT = "The cat sat on the mat. The dog ran to the park. A bird sang in the tall tree.\n" * 12
QUESTIONS = ["The cat", "The dog ran", "A bird sang in", "On the mat", "the park", "A dog", "The tall", "bird"]
CHOICES = [" sat", " dog", " ran", " tree"]
POSITIONS, NEW, STOP = 32, 8, "a"

BASE = {"dataset_path": "json", "test_split": "test", "doc_to_text": "question", "target_delimiter": ""}
MEAN = {"aggregation": "mean", "higher_is_better": True}
TASKS = {
    "choose": {
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "metric_list": [{"metric": "acc", **MEAN}],
        "metadata": {"version": 1.5},
    },
    "continue": {
        "output_type": "loglikelihood",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}],
    },
    "read": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "text",
        "metric_list": [{"metric": name} for name in ("word_perplexity", "byte_perplexity", "bits_per_byte")],
    },
    "write": {
        "output_type": "generate_until",
        "doc_to_target": "written",
        "generation_kwargs": {"until": [STOP], "max_gen_toks": NEW},
        "metric_list": [{"metric": "exact_match", **MEAN}],
    },
}
TEXTS = [TEXT[:60], TEXT[:500], "Ünïcode: the mat"]


class Truth:
    """What the harness should find, from `.logits` alone, one text at a time."""

    def __init__(self, folder):
        self.model = AutoModelForCausalLM.from_pretrained(folder).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    @torch.no_grad()
    def logs(self, ids):
        return torch.log_softmax(self.model(input_ids=torch.tensor([ids])).logits[0].double(), -1)

    def continuation(self, question, answer):
        before, ids = self.tokenizer.encode(question), self.tokenizer.encode(question + answer)
        logs = self.logs(ids[:-1])
        return sum(logs[place - 1, ids[place]].item() for place in range(len(before), len(ids)))

    def choice(self, question):
        return max(range(len(CHOICES)), key=lambda index: self.continuation(question, CHOICES[index]))

    def text(self, text):
        """Every token once, with as many tokens before it in its window as the model has positions for."""
        ids = [self.tokenizer.eos_token_id, *self.tokenizer.encode(text)]
        total = 0.0
        for begin in range(0, len(ids) - 1, POSITIONS):
            end = min(begin + POSITIONS, len(ids) - 1)
            first = max(0, end - POSITIONS)
            logs = self.logs(ids[first:end])
            total += sum(logs[place - first, ids[place + 1]].item() for place in range(begin, end))
        return total

    def greedy(self, question):
        ids = self.tokenizer.encode(question)
        for _ in range(NEW):
            ids.append(int(self.logs(ids)[-1].argmax()))
            written = self.tokenizer.decode(ids[len(self.tokenizer.encode(question)) :], skip_special_tokens=True)
            if ids[-1] == self.tokenizer.eos_token_id or STOP in written:
                break
        return written.split(STOP)[0]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_task(folder, name, **changes):
    kind = TASKS[name]
    data = "texts.jsonl" if name == "read" else "questions.jsonl"
    task = {"task": name, "dataset_kwargs": {"data_files": {"test": data}}, **BASE, **kind, **changes}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task), encoding="utf-8")
    return folder / f"{name}.yaml"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The models `stock` and `coded`; for each a folder of tasks: every third question has a wrong answer."""
    folder = tmp_path_factory.mktemp("harness")
    tokenizer = train_bpe([TEXT], 300)
    torch.manual_seed(0)
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=POSITIONS, **sizes, **special)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    for name in ("stock", "coded"):
        if name == "coded":
            codehead.attach(model, code="minrandom", bits=20)
            with torch.no_grad():
                model.lm_head.weight.mul_(5)
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        tasks = folder / f"tasks-{name}"
        tasks.mkdir()
        write_lines(tasks / "questions.jsonl", questions(Truth(folder / name)))
        write_lines(tasks / "texts.jsonl", [{"text": text} for text in TEXTS])
        for task in TASKS:
            write_task(tasks, task)
    return folder


def answer(number):
    return f" {QUESTIONS[-1 - number]}"


def questions(truth):
    for number, question in enumerate(QUESTIONS):
        wrong = number % 3 == 0
        yield {
            "question": question,
            "choices": CHOICES,
            "gold": (truth.choice(question) + wrong) % len(CHOICES),
            "answer": answer(number),
            "written": truth.greedy(question) + "?" * wrong,
        }


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture(scope="module", params=["stock", "coded"])
def measured(request, place, tmp_path_factory):
    """Truth and result of a model; batches of three, so that requests are padded and portions are many."""
    folder = place / request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))
        patch.setattr(harness, "PORTION", 1)
        return Truth(folder), run_tasks(str(folder), str(place / f"tasks-{request.param}"), batch_size=3)


def values(measured, task):
    return {name: found["value"] for name, found in measured[1].metrics["tasks"][task]["metrics"].items()}


def test_the_choices_are_those_of_the_logits(measured):
    truth, result = measured
    rights = sum(number % 3 != 0 for number in range(len(QUESTIONS)))
    assert len({truth.choice(question) for question in QUESTIONS}) > 1
    found = result.metrics["tasks"]["choose"]
    assert found["metrics"]["acc"]["value"] == rights / len(QUESTIONS)
    assert found["metrics"]["acc"]["stderr"] == pytest.approx(math.sqrt(rights * 3 / 64 / 7))
    assert (found["samples"], found["version"], found["num_fewshot"]) == (len(QUESTIONS), 1.5, 0)


def test_the_likelihood_of_a_continuation_is_that_of_the_logits(measured):
    truth, _ = measured
    logs = [truth.continuation(question, answer(number)) for number, question in enumerate(QUESTIONS)]
    expected = math.exp(-sum(logs) / len(logs))
    assert values(measured, "continue")["perplexity"] == pytest.approx(expected, rel=1e-4)
    assert measured[1].metrics["tasks"]["continue"]["metrics"]["perplexity"]["stderr"] > 0


def test_the_likelihood_of_a_text_is_that_of_the_logits(measured):
    truth, _ = measured
    total = sum(truth.text(text) for text in TEXTS)
    sizes = sum(len(text.encode()) for text in TEXTS)
    found = values(measured, "read")
    assert found["byte_perplexity"] == pytest.approx(math.exp(-total / sizes), rel=1e-4)
    assert found["bits_per_byte"] == pytest.approx(-total / sizes / math.log(2), rel=1e-4)
    assert found["word_perplexity"] == pytest.approx(math.exp(-total / sum(len(t.split()) for t in TEXTS)), rel=1e-3)


def test_what_is_written_is_the_greedy_continuation(measured):
    truth, _ = measured
    assert len({truth.greedy(question) for question in QUESTIONS}) > 1
    rights = sum(number % 3 != 0 for number in range(len(QUESTIONS)))
    assert values(measured, "write") == {"exact_match": rights / len(QUESTIONS)}


def test_the_result_tells_how_it_came_about(measured, tmp_path):
    _, result = measured
    assert result.config["tasks"] == [f"tasks-{result.name}"]
    assert (result.config["decision"] is None) == (result.name == "stock")
    assert result.provenance["packages"]["lm_eval"]
    names = {entry["name"] for entry in result.provenance["data"]}
    assert names == {*(f"{task}.yaml" for task in TASKS), "questions.jsonl", "texts.jsonl"}
    assert all(len(entry["sha256"]) == 64 for entry in result.provenance["data"])
    assert Result.read(result.write(tmp_path / "result.json")) == result


# the harness passes on the quantization_config that it read from the folder itself
@pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning")
@pytest.mark.parametrize("name", ["stock", "coded"])
def test_the_harness_loads_a_folder_by_itself(place, name):
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    truth = Truth(place / name)
    pairs = [(question, " sat") for question in QUESTIONS]
    requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    loaded = HFLM(pretrained=str(place / name), device="cpu", batch_size=3)
    handed = harness_model(truth.model, truth.tokenizer, 3)
    expected = pytest.approx([truth.continuation(*pair) for pair in pairs], rel=1e-4)
    assert [answer[0] for answer in loaded.loglikelihood(requests, disable_tqdm=True)] == expected
    assert [answer[0] for answer in handed.loglikelihood(requests, disable_tqdm=True)] == expected


# --- which tasks


@pytest.fixture
def tasks(place, tmp_path):
    """A folder with the data of the coded model, and no task yet."""
    for name in ("questions.jsonl", "texts.jsonl"):
        (tmp_path / name).write_text((place / "tasks-coded" / name).read_text())
    return tmp_path


def group(name, *members):
    return {"group": name, "task": list(members), "aggregate_metric_list": [{"metric": "acc", "aggregation": "mean"}]}


def test_a_group_finds_its_members_beside_it_and_a_base_is_no_task(tasks, place):
    write_task(tasks, "choose")
    write_task(tasks, "write", task="choose_too", include="_base.yml", **TASKS["choose"])
    (tasks / "_base.yml").write_text("metadata: {version: 3.0}")
    (tasks / "both.yaml").write_text(yaml.safe_dump(group("both", "choose", {"task": "choose_too"})))
    for spec in (tasks / "both.yaml", tasks):
        metrics = run_tasks(str(place / "coded"), [str(spec)], limit=4).metrics
        accuracy = {name: record["metrics"]["acc"]["value"] for name, record in metrics["tasks"].items()}
        assert accuracy == {"choose": 0.5, "choose_too": 0.5}
        assert metrics["groups"]["both"]["metrics"]["acc"]["value"] == 0.5
        assert metrics["groups"]["both"]["samples"] == 8


@pytest.mark.slow  # the harness reads all its files for an index
def test_a_group_with_its_tasks_written_out(tasks, place):
    written = yaml.safe_load(write_task(tasks, "choose").read_text())
    (tasks / "all.yaml").write_text(yaml.safe_dump(group("all", written)))
    (tasks / "choose.yaml").unlink()
    result = run_tasks(str(place / "coded"), str(tasks / "all.yaml"))
    assert list(result.metrics["tasks"]) == ["all::choose"]
    assert [entry["name"] for entry in result.provenance["data"]] == ["all.yaml", "questions.jsonl"]


def test_data_is_beside_the_task_or_in_the_current_directory(tasks, tmp_path, monkeypatch):
    path = write_task(tasks, "choose", dataset_kwargs={"data_files": {"test": ["here/questions.jsonl"]}})
    with pytest.raises(CodeheadError, match=r"'here/questions.jsonl' of task file '.*choose.yaml' does not exist"):
        load_tasks([str(path)])
    current = tmp_path / "elsewhere"
    (current / "here").mkdir(parents=True)
    write_lines(current / "here" / "questions.jsonl", json_lines(tasks / "questions.jsonl")[:2])
    monkeypatch.chdir(current)
    assert len(load_tasks([str(path)])[0]["tasks"]["choose"].eval_docs) == 2
    (tasks / "here").mkdir()
    write_lines(tasks / "here" / "questions.jsonl", json_lines(tasks / "questions.jsonl")[:3])
    assert len(load_tasks([str(path)])[0]["tasks"]["choose"].eval_docs) == 3


def json_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_examples_precede_the_question(tasks, place):
    path = str(write_task(tasks, "choose"))
    with pytest.raises(ConfigurationError, match="has no documents for 2 examples but its questions"):
        run_tasks(str(place / "coded"), path, num_fewshot=2)
    write_task(tasks, "choose", fewshot_split="test")
    with pytest.raises(ConfigurationError, match="--num-fewshot is 8, but task 'choose' has 7 documents"):
        run_tasks(str(place / "coded"), path, num_fewshot=8)
    assert run_tasks(str(place / "coded"), path, num_fewshot=1, limit=2).metrics["tasks"]["choose"]["num_fewshot"] == 1
    write_task(tasks, "choose", fewshot_split="test", num_fewshot=0)
    assert run_tasks(str(place / "coded"), path, num_fewshot=1, limit=2).metrics["tasks"]["choose"]["num_fewshot"] == 0


def test_names_and_patterns(tasks):
    from lm_eval.tasks import TaskManager

    for task in ("choose", "write"):
        write_task(tasks, task, task=f"my_{task}")
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    assert find_names("my_*", manager) == ["my_choose", "my_write"]
    assert find_names("my_write", manager) == ["my_write"]
    with pytest.raises(ConfigurationError, match="unknown task 'my_rite'; did you mean 'my_write'"):
        find_names("my_rite", manager)
    with pytest.raises(ConfigurationError, match="unknown task 'mine_"):
        find_names("mine_*", manager)


WRITTEN = {"task": "mine", **BASE, **TASKS["choose"]}


@pytest.mark.parametrize(
    ("members", "needed"),
    [
        (["choose", {"task": "choose", "num_fewshot": 0}], False),
        ([WRITTEN], True),
        (["arc_easy"], True),
        ([{"task": "arc_easy", "dataset_path": "mine"}], True),
        ([{"group": "mine", "task": ["choose"]}], True),
    ],
)
def test_the_names_of_the_harness_are_read_where_a_group_may_name_one(tasks, monkeypatch, members, needed):
    class ToldError(Exception):
        pass

    def manager(include_defaults):
        raise ToldError(include_defaults)

    write_task(tasks, "choose")
    (tasks / "some.yaml").write_text(yaml.safe_dump(group("some", *members)))
    monkeypatch.setattr("lm_eval.tasks.TaskManager", manager)
    with pytest.raises(ToldError, match=str(needed)):
        load_tasks([str(tasks / "some.yaml")])


@pytest.mark.slow  # the harness reads all its files for an index
def test_the_names_of_the_harness(tasks):
    write_task(tasks, "choose")
    (tasks / "both.yaml").write_text(yaml.safe_dump(group("both", "choose", "arc_esy")))
    with pytest.raises(ConfigurationError, match="unknown task 'arc_esy'; did you mean 'arc_easy'"):
        load_tasks([str(tasks / "both.yaml")])


def test_the_task_of_the_documentation(place, tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "harness.md").read_text(encoding="utf-8")
    for kind, name in (("yaml", "capitals.yaml"), ("json", "capitals.jsonl")):
        (tmp_path / name).write_text(re.search(rf"```{kind}\n(.*?)```", page, re.DOTALL)[1], encoding="utf-8")
    found = run_tasks(str(place / "coded"), str(tmp_path), num_fewshot=2).metrics["tasks"]["capitals"]
    assert (found["samples"], found["num_fewshot"], list(found["metrics"])) == (3, 2, ["acc"])


def test_nothing_of_the_process_is_left_changed(place, monkeypatch):
    from tqdm import tqdm

    begin, level = vars(tqdm)["__init__"], logging.getLogger("lm_eval").level
    monkeypatch.setenv("DISABLE_MULTIPROC", "mine")
    run_tasks(str(place / "stock"), str(place / "tasks-stock" / "choose.yaml"), limit=1)
    assert vars(tqdm)["__init__"] is begin  # as an attribute, a partialmethod is another function each time
    assert logging.getLogger("lm_eval").level == level
    assert os.environ["DISABLE_MULTIPROC"] == "mine"


# --- the command


@pytest.fixture
def evaluate(codehead):
    """Runs `codehead evaluate` in this process; gives its exit status, output and errors."""
    return partial(codehead, "evaluate")


def test_the_command_shows_and_writes(evaluate, place, tmp_path):
    folder, file = place / "tasks-coded", tmp_path / "result.json"
    tasks = ("--tasks", f"{folder / 'choose.yaml'}, {folder / 'read.yaml'}", "--tasks", folder / "continue.yaml")
    status, out, err = evaluate(place / "coded", *tasks, "--out", file, "--limit", 2)
    assert status == 0, err
    assert "loglikelihood_rolling requests, 0:00" in err
    assert "it/s" not in err
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "│ choose │ acc │ 0.5000 ± 0.5000 │ 2 │" in lines
    result = Result.read(file)
    assert list(result.metrics["tasks"]) == ["choose", "read", "continue"]
    assert result.config["tasks"] == ["choose.yaml", "read.yaml", "continue.yaml"]
    assert str(place) not in file.read_text()
    assert evaluate(place / "coded", *tasks, "--out", file)[0] == 2


def test_the_command_prints_json_alone(evaluate, place):
    status, out, err = evaluate(place / "stock", "--tasks", place / "tasks-stock" / "continue.yaml", "--json")
    assert status == 0, err
    assert json.loads(out)["metrics"]["tasks"]["continue"]["samples"] == len(QUESTIONS)


MISTAKES = {
    "": "give either --data (a text) or --tasks (names of lm-evaluation-harness, or .yaml files), not neither",
    "--data d.txt --tasks choose": "not both",
    "--tasks t.yaml --repeats 0": "--repeats is 0, but it belongs to --data; with --tasks, omit it",
    "--tasks t.yaml --decoder hamming": "--decoder is 'hamming', but it belongs to --data",
    "--data d.txt --num-fewshot 0": "--num-fewshot is 0, but it belongs to --tasks; with --data, omit it",
    "--tasks=,": "--tasks names no task",
    "--tasks {here}/none.yaml": "none.yaml' does not exist",
    "--tasks {here}/questions.jsonl": "questions.jsonl' cannot be read",
    "--tasks {here}/list.yaml": "list.yaml' cannot be read: Expected YAML dict",
    "--tasks {here}/base.yaml": "base.yaml' holds no task: a .yaml file with the key 'task' or 'group'",
    "--tasks {here}/empty": "empty' holds no task",
    "--tasks {here}/names.yaml": "the name in task file '",
    "--tasks {here}/choose.yaml": "data file 'gone.jsonl' of task file",
    "--tasks {here}/write.yaml": "task 'write' generates up to 32 tokens, but the model takes at most 32 with the",
    "--tasks {here}/read.yaml": "task 'read' could not be loaded",
    "--tasks {here}/continue.yaml,{here}/again.yaml": "task 'continue' is in",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes_are_told_in_one_message(evaluate, place, tasks, line):
    (tasks / "list.yaml").write_text("[1, 2]")
    (tasks / "base.yaml").write_text("output_type: multiple_choice")
    (tasks / "empty").mkdir()
    (tasks / "names.yaml").write_text("task: [choose, write]")
    write_task(tasks, "choose", dataset_kwargs={"data_files": {"test": "gone.jsonl"}})
    write_task(tasks, "write", generation_kwargs={"until": [STOP], "max_gen_toks": POSITIONS})
    write_task(tasks, "read", test_split="validation")
    (tasks / "again.yaml").write_text(write_task(tasks, "continue").read_text())
    status, out, err = evaluate(place / "coded", *(word.format(here=tasks) for word in line.split()))
    assert (status, out) == (2, "")
    assert "Error: " in err
    assert MISTAKES[line] in err


def test_without_the_harness_the_remedy_is_told(evaluate, place, monkeypatch):
    monkeypatch.setattr(harness, "find_spec", lambda name: None)
    status, _, err = evaluate(place / "coded", "--tasks", "arc_easy")
    assert status == 2
    assert "pip install 'codehead[harness]'" in err
