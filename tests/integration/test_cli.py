from __future__ import annotations

import errno
import io
import json
import os
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console
from transformers import TrainerState

from codehead.config.budget import read_share, read_speed
from codehead.errors import ConfigurationError
from codehead.training import loop
from codehead.training.trainer import RichProgress


def test_the_command_line_is_light():
    heavy = "torch transformers datasets peft matplotlib accelerate".split()  # noqa: SIM905
    assert loaded("codehead.__main__", heavy) == []


def test_decision_layers_do_without_the_compiler():
    """It takes longer to load than torch itself."""
    assert loaded("codehead.layer", ["torch", "torch._dynamo"]) == ["torch"]


def loaded(module, names):
    """Which of the packages a fresh process has when it has imported a module."""
    script = f"import json, sys, {module}; print(json.dumps([name for name in {names} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_help_names_every_command(codehead):
    status, out, _ = codehead("--help")
    assert status == 0
    for name in ("params", "attach", "pretrain", "finetune", "evaluate", "generate", "code", "demo"):
        assert name in out


# --- params


def test_params_of_the_paper(codehead):
    status, out, _ = codehead("params", "--hidden-size", 2048, "--vocab-size", 50272)
    assert status == 0
    for number in ("102,957,056", "32,768", "102,400", "16,785,408", "52,454,400"):
        assert number in out
    assert "(16, 512)" in out


def test_params_of_a_model_and_of_its_config_file(codehead, place):
    _, from_folder, _ = codehead("params", place / "model", "--json")
    _, from_file, _ = codehead("params", place / "model" / "config.json", "--json")
    values = json.loads(from_folder)
    assert values == json.loads(from_file)
    assert (values["hidden_size"], values["vocab_size"], values["tied"]) == (16, 272, True)
    assert values["configurations"][0]["head_parameters"] == 16 * 272
    assert "embedding, which stays" in " ".join(codehead("params", place / "model")[1].split())


def test_params_want_one_source(codehead, place):
    assert codehead("params")[0] == 2
    status, _, err = codehead("params", place / "model", "--hidden-size", 3)
    assert status == 2
    assert "either a model, or both" in err


# --- how errors are told


def test_errors_are_one_message_without_traceback(codehead, place):
    status, out, err = codehead("evaluate", place / "model", "--data", place / "none.txt")
    assert (status, out) == (2, "")
    assert err.strip() == f"Error: data file '{place / 'none.txt'}' does not exist"


@pytest.fixture
def places(place, coded_folder, tmp_path):
    """What the mistakes below need: a file, a folder, a model that is cut off; and the models of this module."""
    (tmp_path / "file").write_text("not a folder")
    shutil.copytree(place / "model", tmp_path / "cut")
    weights = tmp_path / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return {"here": tmp_path, "model": place / "model", "coded": coded_folder, "text": place / "text.txt"}


TRAIN = "--train {text} --out {here}/run"
MISTAKES = {
    f"finetune --model {{model}} {TRAIN} --set a=[1": "a is '[1', which is not valid YAML",
    f"pretrain --model {{{{model_type:gpt2 {TRAIN}": "model is '{model_type:gpt2', which is not valid YAML",
    "finetune --config {here}": "cannot be read",
    "attach {model} --out {here}/file": "is a file; name another folder",
    "finetune --model {model} --train {text} --out {here}/file": "is a file; name another folder",
    "finetune --model {model} --train {text} --out {here}/file/run": "is a file; name another folder",
    "demo --out {here}/file": "is a file; name another folder",
    "protocol run x.yaml --out {here}/file": "is a file; name another folder",
    "evaluate none --data none --out {here}": "is a folder; name a file in it",
    "evaluate none --data none --out {here}/file": "exists already; choose another file or use --overwrite",
    "code gray --classes 4 --out {here}": "is a folder; name a file in it",
    f"finetune --model {{model}} {TRAIN} --set training.eval_strategy=steps": "give data.validation or",
    f"finetune --model {{model}} {TRAIN} --set training.max_steps=abc": "training.max_steps is 'abc'; give a whole",
    f"finetune --model {{model}} {TRAIN} --set lora.alpha=abc": "lora.alpha is 'abc'; give a number",
    f"finetune --model {{coded}} {TRAIN} --block-size 16 --bits 9": "omit --code, --bits, --head, --width, --budget",
    f"finetune --model {{coded}} {TRAIN} --block-size 16 --loss bitwize": "unknown loss 'bitwize'; did you mean",
    "evaluate {here}/cut --data {text}": "cut/model.safetensors is not a complete safetensors file",
    "attach {model} --out {here}/coded --head-param bias": "--head-param 'bias' is not KEY=VALUE",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_mistakes_are_told_in_one_message(codehead, places, line):
    status, out, err = codehead(*(word.format(**places) for word in line.split()))
    assert (status, out) == (2, "")
    assert err.startswith("Error: ")
    assert MISTAKES[line] in err


def test_ctrl_c_in_any_command_is_told(codehead, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("codehead.lab.measure.evaluate_checkpoint", interrupted)
    status, out, err = codehead("evaluate", "m", "--data", "d")
    assert (status, out, err.strip()) == (130, "", "Interrupted.")
    monkeypatch.setattr("codehead.lab.protocols.protocol.Protocol.from_yaml", interrupted)
    status, _, err = codehead("protocol", "run", "x.yaml", "--out", tmp_path)
    assert (status, err.strip()) == (130, "Interrupted; run the same command again to resume.")


def test_ctrl_c_tells_how_to_go_on(codehead, place, tmp_path, monkeypatch):
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-7"
    arguments = ("finetune", "--model", place / "model", "--train", place / "text.txt", "--out", tmp_path / "run")

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("codehead.training.run.train", interrupted)
    status, _, err = codehead(*arguments)
    assert status == 130
    assert "No checkpoint was saved yet" in err
    checkpoint.mkdir(parents=True)
    (checkpoint / "trainer_state.json").write_text("{}")
    status, _, err = codehead(*arguments)
    assert status == 130
    assert f"Saved: {checkpoint}. The same command" in err


def test_ctrl_c_while_the_new_head_learns_tells_that_this_was_kept(codehead, place, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("codehead.training.new_head.softmax_head", interrupted)  # the text has been read by then
    arguments = ("--train", place / "text.txt", "--out", tmp_path / "run", "--block-size", 16, "--budget", "60%")
    status, _, err = codehead("finetune", "--model", place / "model", *arguments, "--set", "training.use_cpu=true")
    assert status == 130
    assert "The new head's progress was saved" in " ".join(err.split())


# --- progress without a terminal


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves: `clock[0]` are its seconds."""
    seconds = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: seconds[0])
    return seconds


def test_lines_come_every_ten_seconds_with_the_time_left(clock):
    out = io.StringIO()
    with loop.shown(Console(file=out)) as show:
        for done in range(0, 100, 2):
            clock[0] = done / 2  # two units of work a second
            show("early" if done < 60 else "late", done, 100)
    lines = out.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["0%", "20%", "40%", "60%", "80%"]
    assert lines[0] == "  0%  early, 0:00:00 elapsed"
    assert lines[3] == " 60%  late, 0:00:30 elapsed, about 0:00:20 left"


def test_the_time_left_is_that_of_the_last_minutes_unless_they_were_spent_waiting(clock):
    """A machine that was busy at first is idle; then it is away for an hour."""
    out = io.StringIO()
    with loop.shown(Console(file=out)) as show:
        for done in range(100):
            show("work", done, 1000)
            clock[0] += 36 if done < 50 else 4
        clock[0] += 3600
        show("work", 100, 1000)
    lines = out.getvalue().splitlines()
    idle = [line for line in lines if line.startswith("  9%")]
    assert idle and all("about 1:0" in line for line in idle)  # 4 seconds each
    assert lines[-1] == " 10%  work, 1:33:20 elapsed, about 14:00:00 left"  # 56 seconds each, not 3,604


def test_other_work_has_its_own_time_left(clock):
    out = io.StringIO()
    with loop.shown(Console(file=out)) as show:
        for stage, total, seconds in (("measuring", 50, 100), ("learning", 20, 1), ("reading", 20, 2)):
            for done in range(total + 1):
                show(stage, done, total)
                clock[0] += seconds
    lines = out.getvalue().splitlines()
    assert "  0%  learning, 0:00:00 elapsed" in lines and " 50%  learning, 0:00:10 elapsed, about 0:00:10 left" in lines
    assert "  0%  reading, 0:00:00 elapsed" in lines and " 50%  reading, 0:00:20 elapsed, about 0:00:20 left" in lines


def test_training_lines_count_from_where_the_run_goes_on(clock):
    out = io.StringIO()
    told = RichProgress("run", Console(file=out))
    state = TrainerState(global_step=50, max_steps=100, is_world_process_zero=True)
    told.on_train_begin(None, state, None)
    for step in range(51, 101):
        clock[0], state.global_step = float(step - 50), step
        told.on_step_end(None, state, None)
        told.on_log(None, state, None, logs={"loss": step / 10})
    lines = out.getvalue().splitlines()
    assert [line.split()[3] for line in lines] == ["50/100", "60/100", "70/100", "80/100", "90/100", "100/100"]
    assert lines[1] == " 60%  run: step 60/100 loss 5.9000, 0:00:10 elapsed, about 0:00:40 left"
    assert "loss 10.0000" in lines[-1]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 136320 vs 136208"),
    ],
)
def test_a_full_disk_is_told(codehead, place, tmp_path, monkeypatch, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr("codehead.training.run.train", full)
    status, _, err = codehead("finetune", "--model", "m", "--train", "t.txt", "--out", tmp_path / "run")
    assert status == 2
    assert "the disk is full" in err


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EFBIG, "File too large", "big.bin"), "'big.bin': a file grew beyond the limit"),
        (RuntimeError("I/O error: File too large (os error 27)"), "raise the limit (ulimit -f)"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk quota is used up"),
        (PermissionError(errno.EACCES, "Permission denied", "/root/a"), "'/root/a': permission was denied"),
        (OSError(errno.EROFS, "Read-only file system"), "the file system is read-only"),
        (OSError(errno.EIO, "Input/output error"), "input/output error"),
        (MemoryError(), "there is not enough memory"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "lower --batch-size or --block-size"),
    ],
)
def test_what_the_system_refuses_is_told_as_such(codehead, tmp_path, monkeypatch, error, words):
    def refused(*_, **__):
        raise error

    monkeypatch.setattr("codehead.training.run.train", refused)
    status, _, err = codehead("finetune", "--model", "m", "--train", "t.txt", "--out", tmp_path / "run")
    assert (status, words in err) == (2, True), err
    assert ("the disk is full" in err) == ("disk is full" in words)


def test_a_file_that_torch_could_not_write_under_a_limit_does_not_mean_a_full_disk(codehead, tmp_path, monkeypatch):
    def refused(*_, **__):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 136320 vs 136208")

    monkeypatch.setattr("codehead.training.run.train", refused)
    monkeypatch.setattr("codehead.boundaries._files_are_limited", lambda: True)
    _, _, err = codehead("finetune", "--model", "m", "--train", "t.txt", "--out", tmp_path / "run")
    assert "the disk is full" not in err
    assert "ulimit -f" in err


def test_a_fault_of_the_program_is_one_line_and_a_file(codehead, tmp_path, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("a bug\nof two lines")

    monkeypatch.setattr("codehead.training.run.train", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    status, out, err = codehead("finetune", "--model", "m", "--train", "t.txt", "--out", tmp_path / "run")
    assert (status, out) == (70, "")
    (report,) = tmp_path.glob("codehead-*.txt")
    assert err == (
        "Error: unexpected RuntimeError: a bug of two lines. This is a bug in codehead; please report it "
        f"with the traceback in {report}\n"
    )
    assert 'raise RuntimeError("a bug' in report.read_text()
    assert "'--train', 't.txt'" in report.read_text()


def test_a_terminal_in_ascii_shows_what_it_can(place):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LANG": "C", "PYTHONUTF8": "0"}
    for line in (("--help",), ("code", "gray", "--classes", "9"), ("params", str(place / "model"))):
        command = [sys.executable, "-m", "codehead", *line]
        done = subprocess.run(command, capture_output=True, env=environment, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.isascii()


@pytest.mark.parametrize("option", ["--out", "--tokenizer", "--model", "--train"])
@pytest.mark.parametrize("value", ["", "  "])
def test_no_option_takes_an_empty_value(codehead, option, value):
    for words in ((option, value), (f"{option}={value}",)):
        status, _, err = codehead("finetune", *words)
        assert (status, err) == (2, f"Error: {option} is empty; give a value, or omit it\n")


@pytest.mark.parametrize("budget", ["٥%", "1_0%", "5 %", " 5%", "5%%", "nan", "inf%", "-5%", "0", "101%", "５%"])
def test_a_budget_is_a_number_in_ascii_digits(budget):
    with pytest.raises(ConfigurationError, match="budget is"):
        read_share(budget)


@pytest.mark.parametrize(("text", "share"), [("5%", 0.05), ("0.05", 0.05), (".5%", 0.005), ("5e-2", 0.05), ("1.", 1.0)])
def test_a_budget_is_a_share_or_a_percentage(text, share):
    assert read_share(text) == pytest.approx(share)


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), np.float16(0.5)])
def test_a_budget_or_a_speed_is_a_number_of_numpy(number):
    assert read_share(number) == read_speed(number) == 0.5
    with pytest.raises(ConfigurationError, match="budget is True"):
        read_share(True)


@pytest.mark.parametrize("speed", ["٤x", "1_0x", "4 x", "nan", "inf", "1e999", "0x", "xx"])
def test_a_speed_is_a_number_in_ascii_digits(speed):
    with pytest.raises(ConfigurationError, match="speed is"):
        read_speed(speed)


def test_a_tilde_is_the_home_in_models_and_outputs(codehead, place, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(place / "model", tmp_path / "model")
    (tmp_path / "model" / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../b"}}')
    status, _, errors = codehead("attach", "~/model", "--out=~/coded", "--code", "minrandom", "--bits", "20")
    assert status == 2 and "outside that folder" in errors
    (tmp_path / "model" / "model.safetensors.index.json").unlink()
    coded = ("--code", "minrandom", "--bits", "20")
    status, _, errors = codehead("attach", "~/model", "--out=~/attach", *coded)
    assert status == 0, errors
    training = ("--train", place / "text.txt", "--max-steps", "1")
    status, _, errors = codehead("finetune", "--model", "~/model", "--out=~/finetune", *coded, *training)
    assert status == 0, errors
    assert codehead("code", *coded[1:], "--classes", "9", "--out=~/code.safetensors")[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"model", "attach", "finetune", "code.safetensors"}


@pytest.mark.parametrize("line", ["recommend ~no.such.user/model", "evaluate coded --data ~no.such.user/a.jsonl"])
def test_the_home_of_nobody_is_no_fault_of_the_program(codehead, coded_folder, monkeypatch, line):
    monkeypatch.chdir(coded_folder.parent)
    status, _, errors = codehead(*line.split())
    assert status == 2 and "~no.such.user" in errors


def test_printed_commands_are_quoted(codehead, place, tmp_path):
    folder = shutil.copytree(place / "model", tmp_path / "my model; ls")
    _, out, _ = codehead("recommend", folder, "--budget", "50%")
    quoted = shlex.quote(str(folder))
    assert f"codehead convert {quoted} --data YOUR_TEXT --budget 50% --out FOLDER" in out
    _, out, _ = codehead("attach", folder, "--bits", 20, "--out", tmp_path / "a b")
    assert f"codehead finetune --model {shlex.quote(str(tmp_path / 'a b'))} --train FILE --out FOLDER" in out
