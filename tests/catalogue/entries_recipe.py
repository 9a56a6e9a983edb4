"""Recipes and arguments."""

# ruff: noqa: E501 - a table reads best with an entry a line

from __future__ import annotations

from entry import GOOD, Entry, Place

HEAD = "model: builtin:tiny\ndata: {train: builtin:support, validation: 4}\nmethod: lora\n"


def with_line(line: str) -> str:
    """A good recipe and one more line, the fourth."""
    return HEAD + line + "\n"


def method(fields: str) -> str:
    return f"model: builtin:tiny\ndata: builtin:support\nmethod: {{type: lora, {fields}}}\n"


def unreadable(place: Place) -> None:
    (place.folder / "r.yaml").chmod(0)


def alias_bomb() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    return "\n".join(lines) + "\n"


RECIPES = [
    Entry("1 recipe missing", 2, ("recipe not found: r.yml", "did you mean r.yaml"), command="validate r.yml"),
    Entry("2 a folder", 2, ("is a folder", "r.yaml"), command="validate ."),
    Entry("3 unreadable", 6, ("no permission", "r.yaml", "chmod"), prepare=unreadable, unprivileged=True),
    Entry("4 empty", 2, ("recipe is empty", "r.yaml", "peft init"), recipe=""),
    Entry("4 only a comment", 2, ("recipe is empty", "peft init"), recipe="# nothing\n"),
    Entry("5 a list", 2, ("`key: value`", "r.yaml:1:1", "peft init"), recipe="- model\n- data\n"),
    Entry("5 a text", 2, ("`key: value`", "r.yaml:1:1"), recipe="just words\n"),
    Entry("6 syntax", 2, ("not YAML", "r.yaml:3:1", "begun at line 2", "check this line"), recipe="model: builtin:tiny\ndata: [a, b\n"),
    Entry("7 tab", 2, ("a tab; YAML needs spaces", "r.yaml:2:1", "two spaces"), recipe="training:\n\tepochs: 1\n"),
    Entry("8 duplicate key", 2, ("`seed` is given twice", "line 4:1", "r.yaml:5:1", "keep one"), recipe=with_line("seed: 1\nseed: 2")),
    Entry("9 unknown key", 2, ("unknown key `learnin_rate`", "r.yaml:4:12", "`learning_rate`"), recipe=with_line("training: {learnin_rate: 1}")),
    Entry("10 wrong section", 2, ("`max_length`", "r.yaml:4:12", "belongs under `data`"), recipe=with_line("training: {max_length: 12}")),
    Entry("11 a key of another tool", 2, ("`num_train_epochs`", "r.yaml:4:12", "`epochs`"), recipe=with_line("training: {num_train_epochs: 4}")),
    Entry("11 another", 2, ("`load_in_4bit`", "r.yaml:4:1", "`model.quantization`"), recipe=with_line("load_in_4bit: true")),
    Entry("12 text for a number", 2, ("`training.epochs`", 'the text "three"', "r.yaml:4:20"), recipe=with_line("training: {epochs: three}")),
    Entry("12 a number for text", 2, ("`name` is 12", "r.yaml:4:7", "quotes"), recipe=with_line("name: 12")),
    Entry("13 rate in words", 2, ("`training.learning_rate`", "fast", "r.yaml:4:27", "auto"), recipe=with_line("training: {learning_rate: fast}")),
    Entry("14 2e-4 is a number", 0, ("is valid",), recipe=with_line("training: {learning_rate: 2e-4}")),
    Entry("15 no is a text", 0, ("is valid",), recipe=with_line("name: no")),
    Entry("15 off is no boolean", 2, ("wanted true or false", "r.yaml:4:36", "`false`"), recipe=with_line("training: {gradient_checkpointing: off}")),
    Entry("16 list for a number", 2, ("`seed` is a list", "r.yaml:4:7"), recipe=with_line("seed: [1]")),
    Entry("17 null", 2, ("`training` is empty", "r.yaml:4:10"), recipe=with_line("training:")),
    Entry("17 no model", 2, ("lacks the key `model`", "r.yaml", "model: "), recipe="data: builtin:support\nmethod: lora\n"),
    Entry("18 negative rate", 2, ("is -0.0001", "r.yaml:4:27"), recipe=with_line("training: {learning_rate: -1e-4}")),
    Entry("19 NaN", 2, ("is nan", "finite", "r.yaml:4:27"), recipe=with_line("training: {learning_rate: .nan}")),
    Entry("19 infinite", 2, ("is inf", "finite", "r.yaml:4:27"), recipe=with_line("training: {learning_rate: 1e999}")),
    Entry("20 rate above 1", 0, ("learning_rate 2 is above 1",), recipe=with_line("training: {learning_rate: 2.0}")),
    Entry("20 decay of everything", 2, ("`weight_decay: 1000`", "r.yaml:4:12"), recipe=with_line("training: {weight_decay: 1000, learning_rate: 1e-3}")),
    Entry("20 no gradient left", 2, ("`max_grad_norm: 1e-20`", "r.yaml:4:12"), recipe=with_line("training: {max_grad_norm: 1e-20}")),
    Entry("21 rank 0", 2, ("`method.r` is 0", "at least 1", "r.yaml:3:25"), recipe=method("r: 0")),
    Entry("21 negative rank", 2, ("`method.r` is -4", "at least 1", "r.yaml:3:25"), recipe=method("r: -4")),
    Entry("22 rank too large", 4, ("r = 1000 is larger", "q_proj", "use r <= 128"), recipe=GOOD.replace("r: 2", "r: 1000"), command="plan r.yaml", lines=20),
    Entry("23 dropout", 2, ("`method.lora_dropout`", "below 1", "r.yaml:3:36"), recipe=method("lora_dropout: 1.5")),
    Entry("24 alpha 0", 2, ("`method.lora_alpha`", "above 0", "r.yaml:3:34"), recipe=method("lora_alpha: 0")),
    Entry("24 alpha NaN", 2, ("`method.lora_alpha`", "finite", "r.yaml:3:34"), recipe=method("lora_alpha: .nan")),
    Entry("25 no batch", 2, ("`training.batch_size`", "at least 1", "r.yaml:4:24"), recipe=with_line("training: {batch_size: 0}")),
    Entry("25 no micro-batch", 2, ("`training.micro_batch_size`", "at least 1", "r.yaml:4:30"), recipe=with_line("training: {micro_batch_size: 0}")),
    Entry("25 larger than the batch", 2, ("larger than batch_size 4", "r.yaml:4:45", "lower it"), recipe=with_line("training: {batch_size: 4, micro_batch_size: 8}")),
    Entry("26 steps and epochs", 2, ("two ways", "r.yaml:4:23", "keep one"), recipe=with_line("training: {epochs: 1, max_steps: 5}")),
    Entry("26 neither", 0, ("is valid",), recipe=HEAD),
    Entry("27 warm-up", 2, ("more than the 10 of the run", "r.yaml:4:27", "a tenth"), recipe=with_line("training: {max_steps: 10, warmup_steps: 20}")),
    Entry("28 never saved", 0, ("checkpoint.every 50 is more than the 2 steps",), recipe=GOOD.replace("every: 1", "every: 50"), command="plan r.yaml"),
    Entry("29 nothing to evaluate on", 2, ("no validation rows", "r.yaml:4:14", "data.validation"), recipe=with_line("evaluation: {every: 10}").replace(", validation: 4", ", validation: 0")),
    Entry("30 best by what", 2, ("`eval_bleu` is not computed", "r.yaml:4:14", "evaluation.metrics"), recipe=with_line("checkpoint: {best: eval_bleu}")),
    Entry("31 optimizer", 2, ("`training.optimizer`", "adamx", "r.yaml:4:23", "`adamw`"), recipe=with_line("training: {optimizer: adamx}")),
    Entry("31 scheduler", 2, ("`training.scheduler`", "r.yaml:4:23", "`cosine`"), recipe=with_line("training: {scheduler: cosin}")),
    Entry("31 metric", 2, ("unknown metric `exact_mach`", "r.yaml:4:23", "`exact_match`"), recipe=with_line("evaluation: {metrics: [exact_mach]}")),
    Entry("31 method", 2, ("unknown method `lroa`", "r.yaml:3:9", "`lora`"), recipe=HEAD.replace("lora", "lroa")),
    Entry("31 task", 2, ("unknown task `causal`", "r.yaml:4:7", "causal-lm"), recipe=with_line("task: causal")),
    Entry("32 seed -1", 2, ("`seed` is -1", "at least 0", "r.yaml:4:7"), recipe=with_line("seed: -1")),
    Entry("32 seed too large", 2, ("`seed`", "at most 4294967295", "r.yaml:4:7"), recipe=with_line("seed: 4294967296")),
    Entry("32 seed in words", 2, ("`seed`", 'the text "abc"', "r.yaml:4:7"), recipe=with_line("seed: abc")),
    Entry("33 version", 2, ("`version`", "r.yaml:4:10", "newer peftcli"), recipe=with_line("version: 2")),
    Entry("34 a secret's key", 2, ("asks for a secret", "r.yaml:4:1", "environment"), recipe=with_line("hub_token: abc")),
    Entry("34 a secret", 2, ("holds a secret", "r.yaml:4:9", "environment"), recipe=with_line("output: hf_" + "aB3" * 10)),
    Entry("35 alias bomb", 2, ("anchors and aliases", "r.yaml:1:", "extends"), recipe=alias_bomb(), lines=70),
    Entry("36 tag", 2, ("tags (`!!python/object/apply:os.system`)", "r.yaml:4:7", "remove the tag"), recipe=with_line("name: !!python/object/apply:os.system [true]"), lines=14),
    Entry("37 deep", 2, ("levels deep", "r.yaml:4:"), recipe=with_line("data: " + "[" * 60 + "]" * 60)),
    Entry("37 large", 2, ("larger than", "r.yaml", "page of text"), recipe="# " + "x" * (1 << 20) + "\n" + GOOD),
    Entry("38 byte order mark", 0, ("is valid",), recipe="\ufeff" + HEAD),
    Entry("38 CRLF", 0, ("is valid",), recipe=HEAD.replace("\n", "\r\n")),
    Entry("38 UTF-16", 2, ("not UTF-8", "UTF-16", "r.yaml:1:1", "save it as UTF-8"), recipe=None, files={"r.yaml": HEAD.encode("utf-16")}),
    Entry("38 Latin-1", 2, ("byte 0xe9 is not UTF-8", "r.yaml:4:10", "save the file as UTF-8"), recipe=None, files={"r.yaml": HEAD.encode() + b"name: caf\xe9\n"}),
    Entry("39 name", 2, ("`name`: must be", "r.yaml:4:7"), recipe=with_line("name: ../../x")),
    Entry("40 variable", 2, ("no variables", "r.yaml:4:7", "--set name="), recipe=with_line("name: ${RUN}")),
    Entry("41 override", 2, ("unknown key `learnin_rate`", "--set training.learnin_rate", "`learning_rate`"), command="validate r.yaml --set training.learnin_rate=1"),
    Entry("41 no override", 2, ("not an assignment", "--set training.epochs=1"), command="validate r.yaml --set nonsense"),
    Entry("42 precision and type", 2, ("compute in bfloat16", "r.yaml:4:12", "auto"), recipe=HEAD.replace("builtin:tiny", "{base: x/y, dtype: bfloat16}") + "training: {precision: fp32}\n"),
    Entry("42 two warm-ups", 2, ("two ways", "r.yaml:4:26"), recipe=with_line("training: {warmup_steps: 2, warmup_ratio: 0.1}")),
    Entry("42 stopping without rows", 2, ("validation", "r.yaml:4:12", "data.validation"), recipe=with_line("training: {early_stopping: {patience: 2}}").replace(", validation: 4", ", validation: 0")),
    Entry("quantized and trained whole", 4, ("full", "stored as nf4", "r.yaml:3"), recipe=HEAD.replace("builtin:tiny", "{base: builtin:tiny, quantization: nf4}").replace("method: lora", "method: full")),
    Entry("extends nothing", 2, ("recipe not found", "base.yaml", "r.yaml:4:10"), recipe=with_line("extends: base.yaml")),
    Entry("extends itself", 2, ("leads back to itself", "r.yaml:4:10", "break the circle"), recipe=with_line("extends: r.yaml")),
]  # fmt: skip

ARGUMENTS = [
    Entry("command unknown", 2, ("no command `trian`", "`peft train`", "--help"), command="trian r.yaml"),
    Entry("option unknown", 2, ("--lr", "peft train --help"), command="train r.yaml --lr 3"),
    Entry("argument missing", 2, ("RECIPE", "peft train --help"), command="train"),
    Entry("two prompts", 2, ("either --prompt or --input", "--prompt"), command="generate run --prompt a --input b"),
    Entry("output without input", 2, ("--output goes with --input",), command="generate run --prompt a --output b"),
    Entry("not a number", 2, ("--rows", "peft data --help"), command="data r.yaml --rows many"),
    Entry("unknown starter", 2, ("no starter 'quikstart'", "`quickstart`"), command="init quikstart"),
    Entry("starter exists", 6, ("the file exists", "r.yaml", "--output"), command="init quickstart --output r.yaml"),
    Entry("unknown key to explain", 2, ("`training.learnin_rate`", "`training.learning_rate`"), command="explain training.learnin_rate"),
    Entry("unknown method to show", 2, ("`lroa`", "`lora`"), command="methods lroa"),
    Entry("size of device", 2, ("cannot read the size 'much'", "24GiB"), command="plan r.yaml --device-memory much"),
]  # fmt: skip
